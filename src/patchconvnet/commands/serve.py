"""`patchconvnet serve`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.torch_imports import import_networks
from patchconvnet.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from patchconvnet.deploy.server.settings import Settings


def serve(
    *,
    model: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int = 1,
    token: Path | None = None,
    batch: int = 16,
    queue: int = 128,
    seconds: float = 30.0,
    megabytes: float = 20.0,
    megapixels: float = 25.0,
    images: int = 32,
    reuse_port: bool = False,
) -> int:
    """Answer over HTTP: a page at /, explanations under /v1, the Open Inference Protocol under /v2.

      patchconvnet serve --model model.onnx
      curl -F image=@cat.jpg http://127.0.0.1:8080/v1/explain

    SIGTERM and Ctrl-C end it when what was accepted has been answered; SIGHUP replaces its workers one by one.

    Args:
        model: an ONNX file that `patchconvnet export` wrote, which needs no PyTorch, or whatever --model of explain
            takes.
        host: address to listen at; the default is this machine alone, 0.0.0.0 is all networks.
        port: port to listen at; 0 takes a free one.
        workers: processes, each with the model in memory.
        token: file that holds the token which requests must bring, as Authorization: Bearer TOKEN; if not given,
            everybody who reaches the port is answered.
        batch: images in one forward pass, at most.
        queue: requests that are accepted at once, at most; more are answered with 503 and Retry-After.
        seconds: time limit of a request.
        megabytes: limit of a request's body.
        megapixels: limit of an image, before it is decoded.
        images: limit of images in one request.
        reuse_port: let another server listen at the same port, which can then take over without a gap.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; it must lie between 0 and 65535.")
    if not 1 <= workers <= 256:
        raise UserError(f"--workers is {workers}; it must lie between 1 and 256.")
    try:
        from patchconvnet.deploy.server import process
        from patchconvnet.deploy.server.settings import Settings, read_token
    except ImportError as error:
        raise UserError(
            f"serve needs {error.name or 'its extra'}, which is not installed: pip install 'patchconvnet[serve]'"
        ) from error
    settings = Settings(
        model=model,
        token_file=None if token is None else str(token.absolute()),
        batch=batch,
        queue=queue,
        seconds=seconds,
        megabytes=megabytes,
        megapixels=megapixels,
        images=images,
        threads=None if workers == 1 else max(1, (os.cpu_count() or 1) // workers),
    )
    if token is not None:
        read_token(token)  # said here, not by each worker
    if workers == 1:
        _import_networks_of(settings)
    process.serve(settings, host, port, workers, worker=f"{__name__}:worker", reuse_port=reuse_port)
    return 0


def worker() -> "FastAPI":
    """The application of one of several processes."""
    from patchconvnet.deploy.server.app import from_environment
    from patchconvnet.deploy.server.settings import Settings

    _import_networks_of(Settings.from_environment())
    return from_environment()


def _import_networks_of(settings: "Settings") -> None:
    if Path(settings.model).suffix.lower() != ".onnx":
        import_networks()


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(serve)
    parser.add_function_arguments(serve, as_group=False)
    return serve(**parser.parse(words))
