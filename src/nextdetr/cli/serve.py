"""``nextdetr serve``."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, settings
from nextdetr.config import ServeConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["serve"]


def serve(
    *models: Annotated[str, Parameter(help="Exported files or checkpoints; NAME=FILE gives one another name.")],
    options: Annotated[ServeConfig | None, Parameter(name="*")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Serve detectors over HTTP, with a page to try them; Ctrl-C stops after answering all accepted requests.

    Example: `nextdetr serve exports/cells/model.onnx --corrections corrected`, then open http://127.0.0.1:8000.
    """
    merged = settings(ServeConfig, options)
    from nextdetr.serve.run import serve as run

    warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged images that clients send; they get an error

    def ready(url: str, app: FastAPI) -> None:
        names = app.state.service.models.names
        if json:
            print_json({"command": "serve", "url": url, "models": names})
        else:
            sys.stderr.write(f"Serving {', '.join(names)} at {url} (the page is there, too); Ctrl-C stops.\n")
            sys.stderr.flush()

    run(*models, ready=ready, **{name: getattr(merged, name) for name in merged.model_fields_set})
