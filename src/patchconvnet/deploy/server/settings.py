"""What a server is started with, and what it admits."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from patchconvnet.errors import UserError

VARIABLE = "PATCHCONVNET_SERVE"  # hands the settings to worker processes
LEAST_TOKEN = 16  # characters


@dataclass(frozen=True)
class Settings:
    """The settings of one server.

    Attributes:
        model: an ONNX file, or whatever `patchconvnet.load` takes.
        token_file: holds the token that requests must bring; None lets everybody in.
        queue: requests that are being worked on or wait, and images that wait; above it the answer is 503.
        batch: images in one forward pass, at most.
        seconds: that a request may take, half of them until its body is there.
        megabytes: of a request's body.
        megapixels: of an image, before it is decoded.
        images: in one request.
        decoders: threads that decode images and write answers.
        threads: that a forward pass computes with; None is as many as there are cores.
    """

    model: str
    token_file: str | None = None
    queue: int = 128
    batch: int = 16
    seconds: float = 30.0
    megabytes: float = 20.0
    megapixels: float = 25.0
    images: int = 32
    threads: int | None = None
    decoders: int = max(2, min(4, os.cpu_count() or 2))

    def __post_init__(self) -> None:
        for name in ("queue", "batch", "seconds", "megabytes", "megapixels", "images", "decoders"):
            if not 0 < getattr(self, name) <= 1e6:
                raise UserError(f"--{name} is {getattr(self, name):g}; it must be above 0 and at most 1,000,000.")

    @property
    def most_bytes(self) -> int:
        """Of a request's body."""
        return int(self.megabytes * 1_000_000)

    @property
    def most_pixels(self) -> int:
        """Of an image."""
        return int(self.megapixels * 1_000_000)

    def to_json(self) -> str:
        """For a worker's environment; `from_environment` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> Self:
        """The settings that the starting process left for its workers."""
        return cls(**json.loads(os.environ[VARIABLE]))


def read_token(file: str | os.PathLike[str]) -> str:
    """The token in a file, without white space around it.

    Raises:
        UserError: there is no such file, or what it holds is too short or no token.
    """
    path = Path(file)
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise UserError(
            f"there is no token file {path}; write one, for example: openssl rand -hex 32 > {path}"
        ) from error
    except (OSError, ValueError) as error:
        why = "it holds other characters than ASCII" if isinstance(error, UnicodeError) else None
        raise UserError(
            f"cannot read the token file {path}: {why or getattr(error, 'strerror', None) or error}"
        ) from error
    if len(token) < LEAST_TOKEN or not token.isprintable() or " " in token:
        raise UserError(
            f"the token file {path} must hold one word of at least {LEAST_TOKEN} characters; write one, for example: "
            f"openssl rand -hex 32 > {path}"
        )
    return token
