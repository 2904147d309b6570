"""The page at ``/``: plain files of this package, with nothing external."""

from __future__ import annotations

import hashlib
from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from nextdetr.page import ENDINGS, page_files
from nextdetr.serve.errors import ServeError

__all__ = ["page_file"]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _files() -> dict[str, tuple[bytes, str, str]]:
    """Content, type and ETag of each file by name; there are no others, so no path leads out."""
    return {
        name: (content, ENDINGS[name[name.rfind(".") :]], f'"{hashlib.sha256(content).hexdigest()[:20]}"')
        for name, content in page_files("nextdetr.serve", "page").items()
    }


def page_file(request: Request, name: str) -> Response:
    """Return a file of the page.

    Raises:
        ServeError: there is no such file (404).
    """
    if name not in _files():
        raise ServeError(404, "there is no such file.")
    content, kind, tag = _files()[name]
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": _POLICY,
               "Permissions-Policy": "camera=(self), microphone=(), geolocation=()"}  # fmt: skip
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)
