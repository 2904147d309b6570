"""Serve this folder to this computer's browsers: python serve.py [PORT].

It sends the two headers that let the page use several threads. Only Python 3.9 or later is needed.
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript",
         ".json": "application/json", ".svg": "image/svg+xml", ".wasm": "application/wasm"}  # fmt: skip


class Handler(SimpleHTTPRequestHandler):
    """Serves files with ``HEADERS``, whatever types this computer's registry has for their suffixes."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, **TYPES}  # noqa: RUF012 - the base class's own

    def end_headers(self) -> None:
        """Add the headers."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Do not log requests."""


def main(arguments: list[str], folder: Path) -> int:
    """Serve until Ctrl-C.

    Args:
        arguments: none, or the port; 0 uses a free one.
        folder: folder to serve.

    Returns:
        The exit code.
    """
    text = arguments[0] if arguments else "8000"
    if len(arguments) > 1 or not (text.isascii() and text.isdigit() and int(text) < 65536):
        sys.stderr.write("the port is a number, 0 to 65535: python serve.py 8000\n")
        return 2
    try:
        server = ThreadingHTTPServer(("127.0.0.1", int(text)), partial(Handler, directory=str(folder)))
    except OSError as error:
        sys.stderr.write(f"port {text} cannot be used ({error.strerror}): python serve.py {(int(text) + 1) % 65536}\n")
        return 2
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
