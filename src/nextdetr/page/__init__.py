"""The page that shows detections: plain files, shared by the server and by ``export --format web``.

``api.js`` is not among them: it defines where images are sent, and comes from the server or the export. It exports
``promise`` (the statement about where images go), ``Failure``, ``models``, ``predict``, ``Stream``, ``correct`` and
``askForKey``.
"""

from __future__ import annotations

from importlib.resources import files

__all__ = ["ENDINGS", "page_files"]

#: Media types of the page's files, by suffix.
ENDINGS = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip


def page_files(package: str, folder: str) -> dict[str, bytes]:
    """Return the files of the page by name, with those of ``folder`` in ``package``, which add ``api.js``."""
    own = files(__name__), files(package).joinpath(folder)
    return {
        entry.name: entry.read_bytes()
        for place in own
        for entry in place.iterdir()
        if entry.name[entry.name.rfind(".") :] in ENDINGS
    }
