"""Access rules: keys, host names, and the web pages that may call the server.

A server on this computer alone needs no key, but any page open in a local browser could send it requests. So ``Host`` must
be the computer's own name (a page whose own name resolves to this computer is refused) and ``Origin``, which browsers send
and pages cannot forge, must be the server's or an allowed one.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from nextdetr.config_serve import ServeConfig, is_loopback
from nextdetr.errors import ConfigError
from nextdetr.serve.errors import ServeError

__all__ = ["Access", "access_of"]

VARIABLE = "NEXTDETR_API_KEY"
#: Routes without a key: they reveal nothing about the models, and the page must load to ask for the key.
OPEN = ("/", "/health", "/ready", "/openapi.json")


@dataclass(frozen=True, slots=True)
class Access:
    """Access rules of a server.

    Attributes:
        keys: accepted keys; empty if none is needed.
        origins: other web sites whose pages may call the server.
    """

    keys: tuple[bytes, ...]
    origins: frozenset[str]

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Check a request's host, origin and key.

        Raises:
            ServeError: the host is not this server's (421), the page not allowed (403), or the key missing or wrong (401).
        """
        self.check_place(headers)
        if self.keys and not is_open(path):
            self.check_key(key_of(headers))

    def check_place(self, headers: Mapping[str, str]) -> None:
        """Check a request's host and origin; see ``check``."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.keys and not is_loopback(_host_name(host)):
            raise ServeError(
                421, "without a key the server answers to localhost and 127.0.0.1 only: ask there, or start it with a key."
            )
        if origin is not None and not self._is_allowed(origin, host):
            raise ServeError(
                403, "this page may not call the server: start it with --cors-origins and the page's web site to allow it."
            )

    def check_key(self, key: str | None) -> None:
        """Compare a key in constant time.

        Raises:
            ServeError: it is missing or wrong (401).
        """
        if not self.keys:
            return
        headers = {"WWW-Authenticate": 'Bearer realm="nextdetr"'}
        if not key:
            raise ServeError(401, "this server needs a key: send it as Authorization: Bearer KEY.", headers=headers)
        given = key.encode(errors="surrogateescape")
        if not sum(hmac.compare_digest(given, known) for known in self.keys):  # always compares all
            raise ServeError(401, "the key is not the server's.", headers=headers)

    def _is_allowed(self, origin: str, host: str) -> bool:
        if "*" in self.origins or origin in self.origins:
            return True
        try:
            return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:
            return False


def is_open(path: str) -> bool:
    """Whether a route is answered without a key."""
    return path in OPEN or path.startswith("/page/")


def key_of(headers: Mapping[str, str]) -> str | None:
    """Return the key of a request: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key")


def access_of(config: ServeConfig, environment: Mapping[str, str] = os.environ) -> Access:
    """Return the rules from the settings and ``NEXTDETR_API_KEY``.

    Raises:
        ConfigError: a server that others can reach has no key, a key cannot be sent, or the file of keys cannot be read.
    """
    keys = _keys(config, environment)
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise ConfigError("a key consists of letters, digits and signs of ASCII: others cannot be sent in a header.")
    if not is_loopback(config.host) and not keys:
        raise ConfigError(
            f"--host {config.host} lets other computers reach the server, which needs a key then: set {VARIABLE}, or give "
            "--api-key-file."
        )
    if "*" in config.cors_origins and not keys:
        raise ConfigError("--cors-origins '*' lets every web page call the server, which needs a key then.")
    return Access(tuple(key.encode(errors="surrogateescape") for key in keys), frozenset(config.cors_origins))


def _keys(config: ServeConfig, environment: Mapping[str, str]) -> list[str]:
    if config.api_key_file is None:
        key = config.api_key or environment.get(VARIABLE, "")
        return [key.strip()] if key.strip() else []
    try:
        lines = config.api_key_file.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors write a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config.api_key_file}: the keys cannot be read ({error}).") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{config.api_key_file}: there is no key in it; write one a line.")
    return keys


def _host_name(host: str) -> str:
    """Return a ``Host`` header's name without its port; "" if it is invalid."""
    if host.startswith("["):
        name, bracket, _ = host[1:].partition("]")
        try:
            return str(ipaddress.IPv6Address(name)) if bracket else ""
        except ValueError:
            return ""
    return host.partition(":")[0]
