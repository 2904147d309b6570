"""onnxruntime-web: pinned files of its npm package, from a cache, from the user's folder, or downloaded with a message.

Only the tested files are accepted, byte for byte: the package by npm's own sha512, each file by its sha256.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from nextdetr.errors import ConfigError, missing_extra
from nextdetr.files import exclusive, make_directory, write_bytes_atomic

__all__ = ["FILES", "VERSION", "WASM", "runtime_files"]

VERSION = "1.30.0"
LICENCE = "MIT"
PACKAGE = f"onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
#: Of the package, as stated by registry.npmjs.org.
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PACKAGE_BYTES = 33_106_585
WASM = "ort-wasm-simd-threaded.wasm"
#: Files to extract, with their sha256.
FILES: Mapping[str, str] = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}

_REGISTRY = "https://registry.npmjs.org"
_SILENT = 30.0  # seconds without data after which a download is aborted
_WAIT = 600.0  # seconds to wait for another process that downloads the same
_CHUNK = 1 << 20


def runtime_files(given: Path | None = None) -> dict[str, Path]:
    """Return the paths of the files of onnxruntime-web, by name.

    Args:
        given: the user's folder with them, such as ``node_modules/onnxruntime-web``; None uses the cache, and downloads
            missing files, with a message on standard error. The registry is npm's own, or the one in npm's variable
            ``NPM_CONFIG_REGISTRY``.

    Raises:
        ConfigError: the folder holds other files, or they cannot be downloaded; the message says what to do.
    """
    if given is not None:
        return _given(given)
    folder = _cache()
    with exclusive(make_directory(folder), wait=_WAIT):
        found = {name: folder / name for name in FILES}
        if not all(_is_sound(path, FILES[name]) for name, path in found.items()):
            _download(folder)
    return found


def _given(folder: Path) -> dict[str, Path]:
    places = [folder, folder / "dist", folder / "package" / "dist"]
    place = next((place for place in places if all((place / name).is_file() for name in FILES)), None)
    if place is None:
        raise ConfigError(f"--runtime-dir {folder}: it does not hold {' and '.join(FILES)} of onnxruntime-web {VERSION}.")
    for name, checksum in FILES.items():
        if not _is_sound(place / name, checksum):
            raise ConfigError(
                f"{place / name}: not the file of onnxruntime-web {VERSION} (its checksum differs): give that version, or "
                "leave --runtime-dir out."
            )
    return {name: place / name for name in FILES}


def _cache() -> Path:
    try:
        from platformdirs import user_cache_path
    except ImportError as error:
        raise missing_extra("platformdirs", "export", "the export to web") from error
    return user_cache_path("nextdetr", appauthor=False) / f"onnxruntime-web-{VERSION}"


def _is_sound(path: Path, checksum: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == checksum
    except OSError:
        return False


def _download(folder: Path) -> None:
    """Download the package, and extract the needed files.

    Raises:
        ConfigError: it cannot be downloaded completely, or is not the pinned one.
    """
    registry = next((value for name, value in os.environ.items() if name.upper() == "NPM_CONFIG_REGISTRY"), _REGISTRY)
    address = f"{registry.rstrip('/')}/{PACKAGE}"
    if not address.startswith(("https://", "http://")):
        raise ConfigError(f"NPM_CONFIG_REGISTRY: a registry's address begins with https:// (given: {registry}).")
    sys.stderr.write(
        f"onnxruntime-web {VERSION} ({LICENCE}): downloading {address}, {PACKAGE_BYTES / 1e6:.0f} MB, once, to {folder}\n"
    )
    with tempfile.TemporaryFile() as package:
        try:
            checksum = _receive(address, package)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            text = " ".join(str(reason).split()) or type(error).__name__
            raise ConfigError(f"{address}: cannot be downloaded ({text}); {_by_hand()}") from error
        _check(address, package.tell(), checksum)
        package.seek(0)
        with tarfile.open(fileobj=package, mode="r:gz") as archive:
            for name, checksum in FILES.items():
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None  # guaranteed by the checksum
                content = member.read()
                assert hashlib.sha256(content).hexdigest() == checksum
                write_bytes_atomic(folder / name, content)


def _receive(address: str, package: IO[bytes]) -> str:
    """Write the response of a URL, at most one byte more than the package's size; return its sha512 in npm's form."""
    checksum = hashlib.sha512()
    request = urllib.request.Request(address, headers={"User-Agent": "nextdetr"})
    with urllib.request.urlopen(request, timeout=_SILENT) as answer:
        left = PACKAGE_BYTES + 1
        while left and (part := answer.read(min(_CHUNK, left))):
            package.write(part)
            checksum.update(part)
            left -= len(part)
    return base64.b64encode(checksum.digest()).decode()


def _check(address: str, size: int, checksum: str) -> None:
    """Refuse anything but the pinned package.

    Raises:
        ConfigError: it is not.
    """
    if size < PACKAGE_BYTES:
        raise ConfigError(f"{address}: the download broke off after {size:,} of {PACKAGE_BYTES:,} bytes; {_by_hand()}")
    if checksum != INTEGRITY:
        raise ConfigError(
            f"{address}: what came is not onnxruntime-web {VERSION} (its checksum is not the pinned one), and none of it "
            f"was kept; {_by_hand()}"
        )


def _by_hand() -> str:
    return f"try again, or give a folder with {' and '.join(FILES)} of that version: --runtime-dir DIR."
