"""What the losses import."""

from __future__ import annotations

import subprocess
import sys


def test_torchvision_is_imported_only_where_boxes_are_merged():
    code = "import sys, nextdetr.losses.criterion; assert 'torchvision' not in sys.modules"  # it takes 160 MB
    subprocess.run([sys.executable, "-c", code], check=True)
