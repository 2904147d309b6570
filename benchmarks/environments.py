"""Separate environments for the peers, so that their packages and ours are never imported together.

Torch, ONNX and other packages installed here are shared with them through a path file: both sides run on the same
versions, and an environment takes only megabytes. Their packages are not visible from here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def environment(folder: Path, name: str, packages: list[str]) -> Path:
    """Install packages into the environment ``folder/name``, unless they are installed; return its Python."""
    home = folder.expanduser().resolve() / name
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = home / "ready"
    wanted = "\n".join(packages)
    if not ready.is_file() or ready.read_text() not in ("", wanted):
        print(f"Installing {', '.join(packages)} into {home} (once) …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        find = "import sysconfig; print(sysconfig.get_path('purelib'))"
        found = subprocess.run([str(python), "-c", find], check=True, capture_output=True, text=True)
        Path(found.stdout.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        ready.write_text(wanted)
    return python


def surroundings(threads: int) -> dict[str, str]:
    """Return the environment variables of a timed process: the number of threads, and none of our package's paths."""
    values = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return values | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "YOLO_OFFLINE": "true"}
