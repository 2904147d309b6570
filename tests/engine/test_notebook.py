"""What results show in a notebook."""

from __future__ import annotations

from nextdetr.engine.result import TrainResult
from nextdetr.engine.validate import ValResult

TABLE = """epoch,step,seconds,learning_rate,loss,loss_vfl,AP,AP50,AP75
1,10,1.5,0.001,9.5,3.5,0.1,0.2,0.05
2,20,3,0.001,8.5,3,0.25,0.4,0.2
"""


def test_a_training_shows_its_curves(tmp_path):
    best = {"epoch": 2, "metrics": {"AP": 0.25, "AP50": 0.4, "AP_small": None}}
    result = TrainResult(str(tmp_path), 2, 3.0, 9.0, best, "runs/<x>/best.safetensors")
    page = result._repr_html_()
    assert "<img" not in page
    assert "runs/&lt;x&gt;/best.safetensors" in page
    assert "0.250" in page
    assert "AP_small" not in page
    (tmp_path / "metrics.csv").write_text(TABLE)
    page = result._repr_html_()
    assert page.count("data:image/png;base64,") == 1
    assert 5_000 < len(page) < 300_000


def test_a_validation_shows_its_classes():
    per_class = {"cat & dog": {"AP": 0.5, "AP50": None, "boxes": 12}}
    page = ValResult("m", "d", "val", 1200, {"AP": 0.125}, per_class, {})._repr_html_()
    for part in ("1,200 images", "0.125", "cat &amp; dog", "0.500", ">-<", ">12<"):
        assert part in page
