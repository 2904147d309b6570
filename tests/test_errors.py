from __future__ import annotations

import pytest

from nextdetr.data.sources import load_data
from nextdetr.errors import DataError


def test_a_message_is_one_line_whatever_names_hold():
    assert str(DataError("a\nb\x1b[2Jc\u2028d\u00a0e 中")) == "a b\\x1b[2Jc\\u2028d\u00a0e 中"


def test_a_name_with_line_breaks_is_refused_in_one_line(tmp_path):
    (tmp_path / "data.yaml").write_text("train: [images/a\n\n  b]\nnames: {0: a}\n", encoding="utf-8")
    with pytest.raises(DataError) as refused:
        load_data(tmp_path / "data.yaml", "train")
    assert "\n" not in str(refused.value)
