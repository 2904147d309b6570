"""Response formats: JSON, or an annotated image if the client asks for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from nextdetr.json_text import json_text, short_seconds
from nextdetr.serve.batcher import Answer
from nextdetr.serve.errors import ServeError

__all__ = ["error_response", "json_response", "predict_json", "wanted_type"]

_TYPES = ("application/json", "image/jpeg", "image/png")


def wanted_type(accept: str) -> str:
    """Return the client's preferred type among those available (RFC 9110, section 12.5.1).

    Raises:
        ServeError: the client accepts none of them (406).
    """
    ranges: list[tuple[str, float]] = []
    for item in accept.split(",") if accept.strip() else ["*/*"]:
        kind, *options = (part.strip().lower() for part in item.split(";"))
        stated = next((option[2:] for option in options if option.startswith("q=")), "1")
        try:
            ranges.append((kind, min(1.0, max(0.0, float(stated)))))
        except ValueError:
            ranges.append((kind, 0.0))
    best, chosen = 0.0, None
    for candidate in _TYPES:
        quality = _quality(candidate, ranges)
        if quality > best:
            best, chosen = quality, candidate
    if chosen is None:
        raise ServeError(406, "the answer is application/json, image/jpeg or image/png: ask for one of these by Accept.")
    return chosen


def _quality(candidate: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Quality of the most specific range that contains a type; 0 if none does."""
    family = candidate.partition("/")[0]
    for pattern in (candidate, f"{family}/*", "*/*"):
        for kind, quality in ranges:
            if kind == pattern:
                return quality
    return 0.0


def predict_json(model: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the body for one request.

    ``seconds``: the longest wait in the queue; the other steps are summed over the images (each image of a batch has an
    equal share).
    """
    seconds = {"queue": max(answer.seconds["queue"] for answer in answers)}
    for step in ("preprocess", "model", "postprocess"):
        seconds[step] = sum(answer.seconds[step] for answer in answers)
    return {
        "model": model,
        "images": [answer.result for answer in answers],
        "seconds": {step: short_seconds(taken) for step, taken in seconds.items()},
    }


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return JSON that every parser accepts."""
    return Response(json_text(value), status, headers, "application/json")


def error_response(error: ServeError) -> Response:
    """Return the error body for the client."""
    return json_response(error.to_json(), error.status, error.headers)
