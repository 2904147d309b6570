"""Write the folder of ``export --format web``: the page, the runtime, the page's settings, and a server script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nextdetr.confidence import named_thresholds, read_calibrated
from nextdetr.export.web.runtime import VERSION, WASM
from nextdetr.export.web.single import hash_of, single_file, with_policy
from nextdetr.export.web.sums import replace_sums
from nextdetr.files import path_text, write_bytes_atomic, write_text_atomic
from nextdetr.inference.contract import Contract
from nextdetr.page import page_files

__all__ = ["WebFolder", "write_folder"]

PAGE, TERMS, SERVER = "index.html", "detector.json", "serve.py"

#: Content security policy of the page: run its own scripts, and load nothing external.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' '{opened}'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
#: The headers in the file format of Netlify, Cloudflare Pages and others.
_HEADERS = "/*\n  Cross-Origin-Opener-Policy: same-origin\n  Cross-Origin-Embedder-Policy: require-corp\n"
_NOTICE = f"""\
ort.wasm.bundle.min.mjs and {WASM} are unchanged files of the npm package onnxruntime-web {VERSION}
(https://www.npmjs.com/package/onnxruntime-web), Copyright (c) Microsoft Corporation, under the MIT licence; see LICENSE.
What they contain of others: ThirdPartyNotices.txt, and
https://github.com/microsoft/onnxruntime/blob/v{VERSION}/ThirdPartyNotices.txt
"""


@dataclass(frozen=True, slots=True)
class WebFolder:
    """Files written by ``export --format web`` beside the graph.

    Attributes:
        page: the page, to be opened from a server.
        runtime: name and version of its runtime.
        bytes: size of everything that the page loads: itself, the runtime and the graph.
        runtime_bytes: size of the runtime.
        single_file: the page in one file; None without ``--single-file``.
        single_file_bytes: its size; 0 without.
    """

    page: str
    runtime: str
    bytes: int
    runtime_bytes: int
    single_file: str | None
    single_file_bytes: int


def write_folder(model: Path, contract: Contract, runtime: Mapping[str, Path], name: str, *, single: bool) -> WebFolder:
    """Write everything the page needs beside the graph; files of an earlier export that are no longer needed are removed.

    Args:
        model: the graph, ``model.onnx`` in the folder.
        contract: its contract.
        runtime: files of onnxruntime-web by name.
        name: what the page calls the detector; also the name of the single file.
        single: also write the page as one file.

    Raises:
        WriteError: the disk is full, or the folder cannot be written.
    """
    folder, name = model.parent, path_text(name)
    page = page_files("nextdetr.export.web", "page")
    index, opened, unpack = (page.pop(name).decode() for name in (PAGE, "opened.js", "unpack.js"))
    parts = {name: path.read_bytes() for name, path in runtime.items()}
    sizes = {model.name: model.stat().st_size, f"runtime/{WASM}": len(parts[WASM])}
    terms = json.dumps(_terms(contract, name, sizes), ensure_ascii=False, indent=1) + "\n"
    policy = _POLICY.replace("{opened}", hash_of(opened))
    loaded = {
        PAGE: with_policy(index, policy).replace("</body>", f"<script>{opened}</script>\n</body>").encode(),
        TERMS: terms.encode(),
        **{f"page/{name}": content for name, content in page.items()},
        **{f"runtime/{name}": content for name, content in parts.items()},
    }
    written = {**loaded, **_beside()}
    for file, content in written.items():
        write_bytes_atomic(folder / file, content)
    one = folder / f"{name}.html"
    size = 0
    if single:
        text = single_file(index, unpack, page, parts, {TERMS: terms.encode(), model.name: model.read_bytes()})
        write_text_atomic(one, text)
        size = one.stat().st_size
    replace_sums(folder, [model.name, *written, *([one.name] if single else [])])
    return WebFolder(
        str(folder / PAGE), f"onnxruntime-web {VERSION}", sum(map(len, loaded.values())) + sizes[model.name],
        sum(map(len, parts.values())), str(one) if single else None, size,
    )  # fmt: skip


def _terms(contract: Contract, name: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the page's settings for the detector, as JSON."""
    known = read_calibrated(contract.details)
    calibrated = None if known is None else {"threshold": known.threshold, "recall": known.recall}
    return {
        "name": name, "classes": contract.classes, "image_size": contract.image_size,
        "queries": contract.queries, "max_detections": contract.max_detections, "precision": contract.precision,
        "thresholds": named_thresholds(contract.details, contract.classes), "calibrated": calibrated,
        "runtime": f"onnxruntime-web {VERSION}",
        "licence": contract.details["licence"], "weights_licence": contract.details["weights_licence"],
        "bytes": dict(sizes),
    }  # fmt: skip


def _beside() -> dict[str, bytes]:
    """Write files that the page does not load: licences, and a server script."""
    own = files("nextdetr.export.web")
    found = {
        SERVER: own.joinpath("serve_folder.py").read_bytes(),
        "_headers": _HEADERS.encode(),
        "runtime/LICENSE": own.joinpath("page", "LICENSE.onnxruntime").read_bytes(),
        "runtime/NOTICE": _NOTICE.encode(),
    }
    spec = find_spec("onnxruntime")  # the Python package of the same project, used by the gate
    notices = Path(spec.origin).parent / "ThirdPartyNotices.txt" if spec is not None and spec.origin else None
    if notices is not None and notices.is_file():
        found["runtime/ThirdPartyNotices.txt"] = notices.read_bytes()
    return found
