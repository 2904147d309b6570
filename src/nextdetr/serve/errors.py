"""Errors for clients: a status, a kind and one sentence, always in the same JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextdetr.errors import DataError, NextDETRError, WriteError
from nextdetr.files import path_text

__all__ = ["KINDS", "ServeError", "as_serve_error"]

#: Kind of an error by its status, if nothing more specific is known.
KINDS = {
    400: "RequestError",
    401: "KeyError",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    408: "Timeout",
    413: "TooLarge",
    415: "UnsupportedMediaType",
    421: "WrongHost",
    422: "DataError",
    431: "TooLarge",
    500: "ServerError",
    503: "Busy",
    507: "WriteError",
}


class ServeError(Exception):
    """A request that fails.

    Args:
        status: HTTP status.
        message: one sentence: what is wrong, and what to do.
        kind: name of the error; by default that of the status.
        headers: additional headers of the response.
    """

    def __init__(
        self, status: int, message: str, *, kind: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.kind = kind or KINDS.get(status, "RequestError")
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """Return the response body."""
        return {"error": {"type": self.kind, "message": self.message}}


def as_serve_error(error: BaseException) -> ServeError:
    """Return the error for a client: ours, or a generic one for unexpected errors, whose details are in the log."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, NextDETRError):
        status = 422 if isinstance(error, DataError) else 507 if isinstance(error, WriteError) else 500
        return ServeError(status, path_text(" ".join(str(error).split())), kind=type(error).__name__)
    return ServeError(500, "the server failed on this request; its log says why.")
