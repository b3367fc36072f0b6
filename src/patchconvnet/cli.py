"""The command line: which commands there are, and what becomes of a mistake, of Ctrl-C and of a full disk."""

import atexit
import contextlib
import difflib
import errno
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from patchconvnet._version import __version__
from patchconvnet.commands.terminal import give_up_output, interruptible, safe_output
from patchconvnet.commands.torch_imports import uncollected
from patchconvnet.errors import UserError

# each a module of patchconvnet.commands, with a function `run` of the words after it
COMMANDS = {
    "train": "train a network on your images",
    "plan": "calculate what a training will take: memory, time, cost",
    "evaluate": "measure a model on labelled images",
    "explain": "see what a model says about an image, and which patches made it",
    "predict": "classify many images into Parquet files, on one machine or a cluster",
    "review": "list the images worth a look, from what predict wrote",
    "serve": "answer over HTTP, with maps and a page",
    "audit": "measure how faithful a model's maps are, beside the usual methods",
    "export": "write a model with its maps as a file that runs without PyTorch",
    "shard": "write a data set as files of many images, to train from",
    "models": "list the variants and their published weights",
}
HELP = f"""usage: patchconvnet COMMAND [options]

Image classifiers that show where they look: train them, measure them, and see why they decided so.

commands:
{chr(10).join(f"  {name:10} {summary}" for name, summary in COMMANDS.items())}

options:
  --help     this text; patchconvnet COMMAND --help for the options of a command
  --version  the version of patchconvnet
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C, 141 if nobody reads."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with safe_output(), interruptible():
        try:
            code = _run(words)
            sys.stdout.flush()
        except UserError as error:
            print(f"patchconvnet: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\npatchconvnet: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `| head`
            give_up_output()
            return 141
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "torchvision", "timm"):
                raise
            print(
                f"patchconvnet: this needs PyTorch, and {error.name} is not installed: pip install patchconvnet; "
                "without it, explain takes an .onnx file as --model",
                file=sys.stderr,
            )
            return 2
        except MemoryError:
            print("patchconvnet: out of memory; try smaller images, a smaller --size or batch", file=sys.stderr)
            return 2
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
                raise
            give_up_output()
            print(f"patchconvnet: cannot write: {error.strerror}", file=sys.stderr)
            return 2
    return code


def run_and_exit() -> NoReturn:
    """`main` as a process of its own: once the command has ended, Ctrl-C cannot change its exit code any more."""
    code = 130
    # first registered, so called last: to take torch's modules apart takes 0.2 s, and the system frees all at once
    atexit.register(lambda: _leave(code))
    try:
        code = main()
        # while Python takes itself down it would put the default handler back, and the signal would count as the end
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        code = 1
        raise
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run(words: list[str]) -> int:
    command = words[0] if words else "--help"
    if command in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"patchconvnet {__version__}")
        return 0
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"unknown command {command!r}; known: {', '.join(COMMANDS)}.{meant}")
    _quieten()
    _wait_without_spinning()
    try:
        with uncollected():
            module = importlib.import_module(f"patchconvnet.commands.{command}")
        return module.run(words[1:])
    except SystemExit as leaving:  # after --help; one of several processes, where another failed
        return int(leaving.code or 0)


def _wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait for one another, unless the user has said how they shall wait.

    Spinning, they take the core that the one they wait for needs: beside one busy process on two cores a training step
    of the Keras example takes 4.5 s with it and 1.24 s without; on a quiet machine 0.62 s either way. One image at a
    time it is worth more still: with both cores busy the S60's explanation takes 10 s with it and 0.26 s without.
    libgomp reads the variable when torch loads it, so it comes too late where torch is loaded already.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")


def _quieten() -> None:
    """Silence what a user can do nothing about: Fabric's notes on precision and tips, torch's on a missing GPU."""
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch")
    warnings.filterwarnings("ignore", message="Image size")  # Pillow's on large images; ours are refused in words
    warnings.formatwarning = lambda message, *_, **__: f"patchconvnet: {message}\n"  # a sentence, without lines of code
    # importing lightning sets the level of "lightning.fabric" itself, and makes its pytorch part say some of it
    for name in ("fabric.utilities.rank_zero", "pytorch.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
