"""Run the plug-in's tests in an environment of its own: with the pinned ultralytics, or (``--newest``) with the newest.

    python plugins/ultralytics/check.py [--newest] [--folder .venv/plugin] [pytest's arguments]

ultralytics is AGPL-3.0 and is never installed beside NextDETR's own tests; what both need is shared through a path file.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from environments import environment, surroundings  # noqa: E402


def pinned() -> str:
    """Return the release of ultralytics that is tested: the least that the plug-in accepts."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = [re.match(r"ultralytics>=([\d.]+)", line) for line in project["dependencies"] if line.startswith("ultra")]
    assert found is not None
    return found[1]


def main() -> int:
    """Install what is missing, run the tests, and return their exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--newest", action="store_true")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv" / "plugin")
    options, rest = parser.parse_known_args()
    name = "newest" if options.newest else "pinned"
    if options.newest:  # what was the newest when the environment was made may not be it today
        shutil.rmtree(options.folder / name, ignore_errors=True)
    release = "ultralytics" if options.newest else f"ultralytics=={pinned()}"
    python = environment(options.folder, name, [release, "--editable", f"{ROOT}[train]", "--editable", str(HERE)])
    settings = options.folder / "settings"  # not the user's
    settings.mkdir(exist_ok=True)
    values = surroundings(2) | {"YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(settings)}
    shown = "import ultralytics; print('ultralytics', ultralytics.__version__)"
    subprocess.run([str(python), "-c", shown], check=True, env=values)
    command = [str(python), "-m", "pytest", "-q", "-W", "ignore", str(HERE / "tests"), *rest]
    return subprocess.run(command, check=False, env=values, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
