"""NextDETR's table of ultralytics' arguments has each of the installed release's, and none that it does not have."""

from __future__ import annotations

from ultralytics.utils import DEFAULT_CFG_DICT

from nextdetr.engine.foreign_arguments import ARGUMENTS


def test_every_argument_is_in_the_table():
    assert list(DEFAULT_CFG_DICT.keys() - ARGUMENTS.keys()) == []
    assert list(ARGUMENTS.keys() - DEFAULT_CFG_DICT.keys()) == ["save_dir"]  # which args.yaml has beside them
