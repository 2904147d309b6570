"""The ASGI application: its routes and their handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

import nextdetr
from nextdetr.config import ServeConfig, build_config
from nextdetr.errors import ConfigError, NextDETRError
from nextdetr.serve.answers import error_response, json_response
from nextdetr.serve.corrections import Corrections
from nextdetr.serve.errors import ServeError, as_serve_error
from nextdetr.serve.guard import Guard
from nextdetr.serve.metrics import CONTENT_TYPE_LATEST, Metrics
from nextdetr.serve.models import Models, named_sources
from nextdetr.serve.page import page_file
from nextdetr.serve.requests import Service
from nextdetr.serve.schemas import (
    CORRECTION_BODY,
    PREDICT_ANSWERS,
    PREDICT_BODY,
    ErrorBody,
    ModelBody,
    PredictQuery,
    explain_parameters,
)
from nextdetr.serve.security import access_of
from nextdetr.serve.streams import stream

__all__ = ["build_app", "create_app"]

DESCRIPTION = """Finds objects in images. Send one image as the body, or several as the files of a form.

Every error is `{"error": {"type", "message"}}`, and its message is one sentence. A server with a key wants it as
`Authorization: Bearer KEY` or `X-API-Key: KEY`. `/models/{name}/stream` is a WebSocket: encoded frames in, JSON out.
"""

Settings = Annotated[PredictQuery, Query()]


def create_app(*models: str | Path, **settings: Any) -> FastAPI:
    """Open models and return an ASGI application that serves them, for a server of your own.

    Args:
        models: files or shipped names; ``NAME=FILE`` for another name than the file's.
        settings: the options of ``nextdetr serve`` as keywords; ``host`` decides if a key is needed.

    Raises:
        NextDETRError: a model cannot be opened, or a setting is wrong.
    """
    return build_app(models, build_config(ServeConfig, settings))


def build_app(models: Sequence[str | Path], config: ServeConfig, *, opens: Any = None) -> FastAPI:
    """Create the application from checked settings; ``opens`` opens a model (for tests)."""
    access, metrics, sources = access_of(config), Metrics(), named_sources(models)
    if config.weights is not None and len(sources) > 1:
        raise ConfigError(f"--weights are for one model, not for {len(sources)}: serve each in a process of its own.")
    served = Models(sources, config, metrics, opens=opens)
    corrections = None if config.corrections is None else Corrections(config.corrections, config.max_pixels)
    service = Service(config, served, access, metrics, corrections)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.stopping = True
        await asyncio.to_thread(service.models.close)
        if corrections is not None:
            corrections.close()

    app = FastAPI(
        title="NextDETR", version=nextdetr.__version__, description=DESCRIPTION, lifespan=lifespan, docs_url=None,
        redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    _add_handlers(app)
    _add_predictions(app, service)
    _add_writes(app, service)
    _add_information(app, service)
    app.add_middleware(Guard, access=access, metrics=metrics, max_bytes=config.max_bytes)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type"], expose_headers=["Retry-After"],
        )  # fmt: skip
    return app


def _add_handlers(app: FastAPI) -> None:
    """Return every error in the same form."""

    async def told(request: Request, error: Exception) -> Response:
        return error_response(as_serve_error(error))

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentences = {
            404: "there is nothing at this address: GET /openapi.json says what there is.",
            405: f"this address does not take {request.method}.",
        }
        message = sentences.get(error.status_code, str(error.detail))
        return error_response(ServeError(error.status_code, message, headers=dict(error.headers or {})))

    async def of_parameters(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(ServeError(422, explain_parameters(error.errors()), kind="ParameterError"))

    for kind in (ServeError, NextDETRError):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_parameters)


def _add_predictions(app: FastAPI, service: Service) -> None:
    extra = {"requestBody": PREDICT_BODY}

    @app.post("/predict", responses=PREDICT_ANSWERS, openapi_extra=extra, summary="Find objects with the first model")
    async def predict(request: Request, settings: Settings) -> Response:
        return await service.predict(request, None, settings)

    @app.post("/models/{name}/predict", responses=PREDICT_ANSWERS, openapi_extra=extra, summary="Find objects with a model")
    async def predict_with(request: Request, name: str, settings: Settings) -> Response:
        return await service.predict(request, name, settings)

    @app.websocket("/stream")
    async def frames(socket: WebSocket) -> None:
        await stream(socket, service, None)

    @app.websocket("/models/{name}/stream")
    async def frames_with(socket: WebSocket, name: str) -> None:
        await stream(socket, service, name)


def _add_writes(app: FastAPI, service: Service) -> None:
    errors: dict[int | str, dict[str, Any]] = {code: {"model": ErrorBody} for code in (401, 403, 404, 409, 422)}
    extra = {"requestBody": CORRECTION_BODY}

    @app.post("/corrections", status_code=201, responses=errors, openapi_extra=extra, summary="Save a corrected image")
    async def correct(request: Request) -> Response:
        return await service.correct(request, None)

    @app.post("/models/{name}/corrections", status_code=201, responses=errors, openapi_extra=extra,
              summary="Save a corrected image of a model's")  # fmt: skip
    async def correct_with(request: Request, name: str) -> Response:
        return await service.correct(request, name)

    @app.post("/models/{name}/reload", responses={200: {"model": ModelBody}, **errors}, summary="Read a model's file again")
    async def reload(name: str) -> Response:
        if not service.config.allow_reload:
            raise ServeError(403, "models are not reloaded here: start the server with --allow-reload.")
        served = await asyncio.to_thread(service.models.reload, name)
        return json_response(served.info)


def _add_information(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether the server runs")
    async def health() -> Response:
        return json_response({"status": "ok"})

    @app.get("/ready", summary="Whether the server takes requests")
    async def ready() -> Response:
        if service.stopping:
            raise ServeError(503, "the server is stopping.", headers={"Retry-After": "5"})
        return json_response({"status": "ready"})

    @app.get("/model", responses={200: {"model": ModelBody}}, summary="What is known of the first model")
    async def model() -> Response:
        return json_response(service.models.get().info)

    @app.get("/models/{name}", responses={200: {"model": ModelBody}, 404: {"model": ErrorBody}}, summary="Of a model")
    async def model_of(name: str) -> Response:
        return json_response(service.models.get(name).info)

    @app.get("/models", summary="All models, and what the server allows")
    async def models() -> Response:
        config = service.config
        limits = {
            "max_bytes": config.max_bytes, "max_pixels": config.max_pixels, "max_images": config.max_images,
            "timeout": config.timeout,
        }  # fmt: skip
        return json_response(
            {"models": [service.models.get(name).info for name in service.models.names], "limits": limits,
             "corrections": service.corrections is not None, "reload": config.allow_reload}
        )  # fmt: skip

    @app.get("/metrics", summary="Counters for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return page_file(request, "index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        return page_file(request, name)
