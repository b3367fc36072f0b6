"""One server for all tests that only ask, and images to ask about."""

import io
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image
from running import Running, running
from skimage import data

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'patchconvnet[serve]'")


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """The shipped model, served."""
    with running() as server:
        yield server


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def cat() -> bytes:
    """A photograph, 451 × 300."""
    buffer = io.BytesIO()
    Image.fromarray(data.chelsea()).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
