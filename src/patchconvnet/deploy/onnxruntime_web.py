"""onnxruntime-web, which runs a network in the browser: its files from a copy at hand, or from the npm registry.

Two files do: the module without the GPU's parts, and the WebAssembly with SIMD, which uses threads where it is allowed
to. Source: the npm package `onnxruntime-web` (MIT licence, Copyright Microsoft Corporation).
"""

import base64
import hashlib
import json
import os
import tarfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

from patchconvnet.errors import UserError, first_line
from patchconvnet.files import write_atomic

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
REGISTRY = "https://registry.npmjs.org"  # another one is taken from $NPM_CONFIG_REGISTRY, as npm itself does
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
LARGEST = 500_000_000  # bytes of the package, and of one of its files
TIMEOUT = 60  # seconds without a byte


def runtime_files(source: Path | None = None) -> tuple[str, dict[str, bytes]]:
    """The files that a page needs of onnxruntime-web.

    Args:
        source: its npm package, unpacked or as `npm pack onnxruntime-web` gives it (.tgz); None takes the pinned
            version from the user's cache, or else from the npm registry, and checks its checksum.

    Returns:
        The version, and the contents of `FILES` by name.

    Raises:
        UserError: there is no such package, it lacks a file, or it cannot be downloaded.
    """
    package = source or _cached()
    if package.is_dir():
        return _of_folder(package)
    if not package.is_file():
        raise UserError(
            f"there is no {package}; --onnxruntime-web takes the folder of the npm package onnxruntime-web, or the "
            f".tgz file that `npm pack onnxruntime-web@{VERSION}` gives."
        )
    return _of_archive(package)


def cache_folder() -> Path:
    """Where downloads are kept: `patchconvnet` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchconvnet"


def _of_folder(folder: Path) -> tuple[str, dict[str, bytes]]:
    files = {}
    for name in FILES:
        found = next((path for path in (folder / "dist" / name, folder / name) if path.is_file()), None)
        if found is None:
            raise UserError(f"{folder} is no onnxruntime-web: it has no {name}; give the package's folder or its .tgz.")
        files[name] = found.read_bytes()
    about = folder / "package.json"
    return _version(about.read_bytes() if about.is_file() else b"{}"), files


def _of_archive(package: Path) -> tuple[str, dict[str, bytes]]:
    wanted = {f"package/dist/{name}": name for name in FILES} | {"package/package.json": "package.json"}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(package, "r:gz") as archive:
            for member in archive:
                if member.name in wanted and member.isfile() and member.size <= LARGEST:
                    content = archive.extractfile(member)
                    assert content is not None  # of a plain file there is one
                    found[wanted[member.name]] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{package} cannot be read as the .tgz of an npm package: {first_line(error)}") from error
    if missing := [name for name in FILES if name not in found]:
        raise UserError(f"{package} is no onnxruntime-web: it has no {missing[0]}; give the package's folder or .tgz.")
    return _version(found.pop("package.json", b"{}")), found


def _version(about: bytes) -> str:
    try:
        values = json.loads(about)
    except ValueError:
        return "unknown"
    return str(values.get("version", "unknown")) if isinstance(values, Mapping) else "unknown"


def _cached() -> Path:
    """The pinned version's .tgz, downloaded where it is not there or damaged."""
    name = f"onnxruntime-web-{VERSION}.tgz"
    kept = cache_folder() / name
    if kept.is_file() and _checksum(kept.read_bytes()) == INTEGRITY:
        return kept
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY
    address = f"{registry.rstrip('/')}/onnxruntime-web/-/{name}"
    hand = f"where there is a connection, `npm pack onnxruntime-web@{VERSION}` fetches it for --onnxruntime-web"
    if not address.startswith(("https://", "http://")):
        raise UserError(f"$NPM_CONFIG_REGISTRY is {registry!r}; it must be an https:// address of an npm registry.")
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as reply:
            content = reply.read(LARGEST)
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None)
        why = first_line(reason if isinstance(reason, BaseException) else error)
        raise UserError(f"cannot download {address}: {why}; {hand}.") from error
    if (checksum := _checksum(content)) != INTEGRITY:
        raise UserError(
            f"what came from {address} is not onnxruntime-web {VERSION}: its checksum is {checksum[:20]}… and must be "
            f"{INTEGRITY[:20]}…; {hand}."
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, lambda path: path.write_bytes(content))
    except OSError as error:
        raise UserError(f"cannot keep the download in {kept.parent}: {first_line(error)}; {hand}.") from error
    return kept


def _checksum(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
