"""The page in one file: modules, runtime and graph inside, unpacked by the browser; it also opens from disk."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping

__all__ = ["hash_of", "in_order", "single_file", "with_policy"]

#: Workers and modules are URLs created by the page itself (blob:); there is nothing to connect to.
_POLICY = (
    "default-src 'none'; script-src '{script}' blob: 'wasm-unsafe-eval'; worker-src blob:; style-src '{style}'; "
    "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'"
)
_IMPORT = re.compile(r"^(?:import|export) .* from '[./]+(?:runtime/)?([\w.-]+)';", re.MULTILINE)


def single_file(
    index: str, unpack: str, page: Mapping[str, bytes], runtime: Mapping[str, bytes], others: Mapping[str, bytes]
) -> str:
    """Return the page as one HTML text.

    Args:
        index: the page.
        unpack: the script that creates URLs for the modules and starts the page.
        page: scripts, style and icon of the page, by name.
        runtime: files of onnxruntime-web by name.
        others: other files that the page fetches from its folder, by name.
    """
    scripts = {name: content.decode() for name, content in page.items() if name.endswith(".js")}
    scripts |= {name: content.decode() for name, content in runtime.items() if name.endswith(".mjs")}
    binaries = {f"runtime/{name}": content for name, content in runtime.items() if not name.endswith(".mjs")}
    parts = [_modules("page", "app.js", scripts), _modules("worker", "worker.js", scripts)]
    parts += [
        _part(name, base64.b64encode(gzip.compress(content, 9, mtime=0)).decode())
        for name, content in {**others, **binaries}.items()
    ]
    style = page["style.css"].decode()
    icon = f"data:image/svg+xml;base64,{base64.b64encode(page['icon.svg']).decode()}"
    text = index.replace('<link rel="stylesheet" href="page/style.css">', f"<style>{style}</style>")
    text = text.replace('<script type="module" src="page/app.js"></script>\n', "").replace("page/icon.svg", icon)
    assert "page/" not in text
    policy = _POLICY.replace("{script}", hash_of(unpack)).replace("{style}", hash_of(style))
    inside = "\n".join([*parts, f"<script>{unpack}</script>", "</body>"])
    return with_policy(text, policy).replace("</body>", inside)


def in_order(first: str, scripts: Mapping[str, str], above: tuple[str, ...] = ()) -> list[str]:
    """Return a module and those that it imports, each after its own imports.

    Args:
        first: name of the module.
        scripts: all modules by name.
        above: chain of modules that import it.
    """
    assert first not in above, f"{' → '.join((*above, first))} go round in a circle"
    imported = _IMPORT.findall(scripts[first]) if first.endswith(".js") else []
    found = [other for name in imported for other in in_order(name, scripts, (*above, first))]
    return list(dict.fromkeys([*found, first]))


def with_policy(index: str, policy: str) -> str:
    """Return the page with its own Content-Security-Policy, as not every server sends one."""
    mark = '<meta charset="utf-8">\n'
    assert mark in index
    return index.replace(mark, f'{mark}<meta http-equiv="Content-Security-Policy" content="{policy}">\n', 1)


def hash_of(script: str) -> str:
    """Return an inline script's or style's source expression in a policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _modules(name: str, first: str, scripts: Mapping[str, str]) -> str:
    text = json.dumps([(name, scripts[name]) for name in in_order(first, scripts)], ensure_ascii=False)
    return _part(name, text.replace("<", r"\u003c"))


def _part(name: str, content: str) -> str:
    return f'<script type="text/plain" id="file:{name}">{content}</script>'
