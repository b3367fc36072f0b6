"""The server's addresses: explanations under /v1, the Open Inference Protocol under /v2, metrics, and the page."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Path, Query, Request, Response
from PIL import Image

from patchconvnet._version import __version__
from patchconvnet.data.preprocessing import Geometry
from patchconvnet.deploy import server
from patchconvnet.deploy.server.answers import Format, as_png, as_record, kinds_of
from patchconvnet.deploy.server.batching import BatchQueue
from patchconvnet.deploy.server.budget import Budget
from patchconvnet.deploy.server.classifier import Classifier, describe, explanation_of, model_name
from patchconvnet.deploy.server.decoding import decode, known_formats, pixels_in
from patchconvnet.deploy.server.metrics import Measured, Metrics
from patchconvnet.deploy.server.opening import open_classifier
from patchconvnet.deploy.server.page import Page
from patchconvnet.deploy.server.problems import Problem, answer_problems, overloaded, too_slow
from patchconvnet.deploy.server.protocol_v2 import HEADER_LENGTH, VERSION, model_metadata, read_infer, write_infer
from patchconvnet.deploy.server.security import Security
from patchconvnet.deploy.server.settings import Settings, read_token
from patchconvnet.deploy.server.uploads import Upload, body_of, drain, files_in
from patchconvnet.errors import UserError
from patchconvnet.explanation.explanation import Explanation
from patchconvnet.explanation.maps import KINDS, class_index

PAGE = FilePath(server.__file__).parents[1] / "web"
BODIES_AT_ONCE, IMAGES_AT_ONCE = 12, 4  # of the largest size, in memory
MOST_TOP = 1000  # classes whose maps an answer holds
T = TypeVar("T")

_IMAGE = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "contentMediaType": "image/*"}},
        }
    },
    "image/*": {"schema": {"type": "string", "format": "binary"}},
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "contentEncoding": "base64"}},
        }
    },
}
_IMAGES = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "array", "items": {"type": "string", "contentMediaType": "image/*"}}},
        }
    },
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}}},
        }
    },
}
_INFER = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["inputs"],
            "properties": {"id": {"type": "string"}, "inputs": {"type": "array", "items": {"type": "object"}}},
        }
    },
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": _PROBLEM}
    for status, description in {
        400: "the body cannot be read",
        401: "the token is missing or wrong",
        404: "there is no such model",
        408: "the body did not arrive in time",
        413: "too many bytes, pixels or images",
        415: "a content type that is not known",
        422: "no image, or an option out of its range",
        500: "the server failed",
        503: "too many requests wait",
    }.items()
}
Top = Annotated[int, Query(ge=1, le=MOST_TOP, description="classes whose maps are wanted, the likeliest first")]
Target = Annotated[str | None, Query(max_length=200, description="class to ask about, by name or index")]
MapKinds = Annotated[str, Query(max_length=60, description=f"maps to add, with commas: {', '.join(KINDS)}")]
Form = Annotated[Format, Query(description="json, png (the map on the image) or overlay (the map by itself)")]
Model = Annotated[str, Path(max_length=200)]
Version = Annotated[str, Path(max_length=20)]


@dataclass
class Service:
    """One process's model, queue, threads and counters, and the way of a request through them."""

    settings: Settings
    classifier: Classifier
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.name = model_name(self.settings.model)
        self.queue = BatchQueue(self.classifier, self.settings.batch, self.settings.queue, self.metrics)
        self._bytes = Budget(BODIES_AT_ONCE * self.settings.most_bytes)
        self._pixels = Budget(IMAGES_AT_ONCE * self.settings.most_pixels)
        self._decoding = Budget(self.settings.most_pixels)  # resizing takes five times what the pixels do
        self.parsing = asyncio.Lock()  # numbers in JSON take thirty times their bytes while they are read
        self._threads = ThreadPoolExecutor(self.settings.decoders, "decode")
        self._accepted = 0

    async def start(self) -> None:
        """Be ready."""
        await self.queue.start()

    async def stop(self) -> None:
        """Finish what was accepted."""
        await self.queue.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def accepted(self, request: Request) -> AsyncIterator[None]:
        """A request is worked on while this lasts, which is not for longer than the settings' seconds.

        Raises:
            Problem: as many as may be are worked on already, or its time has run out.
        """
        if self._accepted >= self.settings.queue:
            self.metrics.refused.inc()
            await drain(request.receive, self.settings.most_bytes)
            raise overloaded()
        self._accepted += 1
        self.metrics.in_progress.inc()
        try:
            async with asyncio.timeout(self.settings.seconds):
                yield
        except TimeoutError:
            raise too_slow(self.settings.seconds) from None
        finally:
            self._accepted -= 1
            self.metrics.in_progress.dec()

    def body_of(self, request: Request) -> contextlib.AbstractAsyncContextManager[bytes]:
        """See `uploads.body_of`."""
        return body_of(request, self.settings.most_bytes, self._bytes, self.settings.seconds / 2)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes long off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def explain(self, upload: Upload, target: int | None, top: int, write: Callable[[Explanation], T]) -> T:
        """What `write` makes of the explanation of one file; the image is in memory until then."""
        pixels = await self.in_thread(pixels_in, upload.content, self.settings.most_pixels)
        whole = self.classifier.signature.datatype == "UINT8"  # the network's input is the image once more
        async with self._pixels.share(2 * pixels if whole else pixels):
            async with self._decoding.share(pixels):
                image, values, geometry = await self.in_thread(self._prepare, upload.content)
            (outputs,) = await self.queue.run(values[None], target, top)

            def answer() -> T:
                return write(explanation_of(self.classifier, upload.name, image, geometry, outputs, target, top))

            return await self.in_thread(answer)

    def _prepare(self, content: bytes) -> tuple[Image.Image, np.ndarray, Geometry]:
        began = time.perf_counter()
        image = decode(content, self.settings.most_pixels)
        try:
            values, geometry = self.classifier.prepare(image)
        except UserError as error:  # too long and thin to be resized
            raise Problem(422, str(error)) from error
        self.metrics.decode_seconds.observe(time.perf_counter() - began)
        return image, values, geometry

    def target(self, target: str | None) -> int | None:
        """The index of a class that a request names."""
        if target is None:
            return None
        try:
            return class_index(self.classifier.class_names, target)
        except (UserError, ValueError, OverflowError) as error:
            raise Problem(422, str(error)) from error

    def check_name(self, model: str, version: str | None = None) -> None:
        """Refuse models that are not this server's."""
        if model != self.name or version not in (None, VERSION):
            raise Problem(404, f"there is no such model; this server has {self.name}, version {VERSION}")


def create_app(settings: Settings, classifier: Classifier | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        settings: of the server.
        classifier: a model that is open already; by default the one that the settings name.

    Raises:
        UserError: there is no such model, or no token in the token file.
    """
    token = read_token(settings.token_file) if settings.token_file else None
    service = Service(settings, classifier or open_classifier(settings.model, settings.threads))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="patchconvnet", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=_PROBLEMS
    )
    answer_problems(app)
    _add_explanations(app, service)
    _add_protocol_v2(app, service)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    if PAGE.is_dir():
        app.mount("/", Page(directory=PAGE, html=True), "page")
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_middleware(Security, token=token)
    _describe_problems(app)
    return app


def from_environment() -> FastAPI:
    """The application of a worker process."""
    return create_app(Settings.from_environment())


def _add_explanations(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """Class names, input size, temperature, the patches' grid, the maps that exist, and what may be sent."""
        return {
            "name": service.name,
            **describe(service.classifier),
            "package": {"name": "patchconvnet", "version": __version__},
            "limits": {
                "bytes": settings.most_bytes,
                "pixels": settings.most_pixels,
                "images": settings.images,
                "seconds": settings.seconds,
                "top": min(MOST_TOP, len(service.classifier.class_names)),
            },
            "formats": known_formats(),
        }

    @app.post(
        "/v1/explain",
        response_class=Response,
        responses={200: {"content": {"application/json": {}, "image/png": {}}}},
        openapi_extra={"requestBody": {"required": True, "content": _IMAGE}},
    )
    async def explain(
        request: Request, top: Top = 5, target: Target = None, maps: MapKinds = "", format: Form = "json"
    ) -> Response:
        """What the model says about an image, and which patches made it say so."""
        kinds, asked = kinds_of(maps), service.target(target)
        async with service.accepted(request), service.body_of(request) as content:
            content_type = request.headers.get("content-type", "")
            (upload,) = await service.in_thread(files_in, content, content_type, "image", 1)
            if format == "json":
                text = await service.explain(upload, asked, top, lambda one: json.dumps(as_record(one, kinds)))
                return Response(text, media_type="application/json")
            png = await service.explain(upload, asked, top, lambda one: as_png(one, format, kinds))
            return Response(png, media_type="image/png")

    @app.post(
        "/v1/batch",
        response_class=Response,
        responses={200: {"content": {"application/json": {}}}},
        openapi_extra={"requestBody": {"required": True, "content": _IMAGES}},
    )
    async def batch(request: Request, top: Top = 5, target: Target = None, maps: MapKinds = "") -> Response:
        """The same for several images: a list in their order, with a problem in the place of one that is refused."""
        kinds, asked = kinds_of(maps), service.target(target)
        async with service.accepted(request), service.body_of(request) as content:
            content_type = request.headers.get("content-type", "")
            uploads = await service.in_thread(files_in, content, content_type, "image", settings.images)

            async def one(upload: Upload) -> dict[str, Any]:
                try:
                    return await service.explain(upload, asked, top, lambda one: as_record(one, kinds))
                except Problem as problem:
                    return {"name": upload.name, "problem": problem.to_dict()}

            answers = await asyncio.gather(*map(one, uploads))
            text = await service.in_thread(lambda: json.dumps({"images": answers}))
            return Response(text, media_type="application/json")


def _add_protocol_v2(app: FastAPI, service: Service) -> None:
    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        """Name, version and extensions."""
        return {"name": "patchconvnet", "version": __version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        """Whether the model answers: the server listens from then on."""
        return {"ready": True}

    async def metadata(model: Model, version: Version | None = None) -> dict[str, Any]:
        """Inputs and outputs of the model."""
        service.check_name(model, version)
        return model_metadata(service.name, service.classifier)

    async def model_ready(model: Model, version: Version | None = None) -> dict[str, Any]:
        """Whether the model answers."""
        service.check_name(model, version)
        return {"name": service.name, "ready": True}

    async def infer(request: Request, model: Model, version: Version | None = None) -> Response:
        """Network inputs → logits, attention and evidence."""
        service.check_name(model, version)
        async with service.accepted(request), service.body_of(request) as content:
            length = request.headers.get(HEADER_LENGTH)
            async with service.parsing if length is None else contextlib.nullcontext():
                asked = await service.in_thread(
                    read_infer, content, length, service.classifier, service.settings.images
                )
            rows = await service.queue.run(asked.batch)
            body, headers = await service.in_thread(write_infer, service.name, asked, rows)
            return Response(body, headers=headers)

    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        suffix = "_version" if "version" in path else ""
        app.get(path, operation_id=f"metadata{suffix}")(metadata)
        app.get(f"{path}/ready", operation_id=f"model_ready{suffix}")(model_ready)
        app.post(
            f"{path}/infer",
            operation_id=f"infer{suffix}",
            response_class=Response,
            responses={200: {"content": {"application/json": {}, "application/octet-stream": {}}}},
            openapi_extra={"requestBody": {"required": True, "content": _INFER}},
        )(infer)


def _describe_problems(app: FastAPI) -> None:
    """Let /openapi.json say what an error looks like."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        text, number = {"type": "string"}, {"type": "integer"}
        schema.setdefault("components", {}).setdefault("schemas", {})["Problem"] = {
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {"type": text, "title": text, "status": number, "detail": text, "error": text},
        }
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
