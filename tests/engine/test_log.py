"""Output problems do not end a run: a terminal of another encoding or none, a full disk, a deleted table."""

from __future__ import annotations

import errno
import io
import os

import pytest
from matplotlib.figure import Figure

from nextdetr import files
from nextdetr.engine import log
from nextdetr.engine.curves import draw_curves, draw_loss, plot_curves
from nextdetr.engine.log import Display, MetricsTable, read_table

LINE = "Класс 猫 é"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_terminal_without_the_letters_shows_escapes(monkeypatch, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True)
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Display() as display:
        display.update(f"epoch {LINE}", 0.3, "… left")
        display.line(LINE)
    written = raw.getvalue().decode(encoding)
    assert (LINE if encoding == "utf-8" else "\\u732b") in written


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EIO, "terminal"), ValueError("closed file")])
def test_a_terminal_that_is_gone_ends_nothing(monkeypatch, error):
    class Gone(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr("sys.stderr", Gone())
    with Display() as display:
        display.line("a")
        display.line("b")
    monkeypatch.setattr("sys.stderr", None)
    with Display() as display:
        display.line("c")


def test_a_signal_that_comes_while_a_line_is_written_ends_nothing(monkeypatch):
    class Busy(io.StringIO):
        def write(self, text):
            if text.startswith("Stopping"):
                raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")
            return super().write(text)

    stream = Busy()
    monkeypatch.setattr("sys.stderr", stream)
    with Display() as display:
        display.line("Stopping")
        display.line("saved")
    assert stream.getvalue() == "saved\n"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_row_that_a_full_disk_kept_out_comes_later(tmp_path, monkeypatch, caplog):
    table = MetricsTable(tmp_path / "metrics.csv", [])
    with monkeypatch.context() as disk:
        disk.setattr(files, "_flush", full)
        table.add({"epoch": 1, "step": 1})
        draw_loss(tmp_path / "metrics.csv", tmp_path / "curves.png", "t")
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())
    table.add({"epoch": 2, "step": 2, "loss": 1.5, "learning_rate": 0.1})
    assert [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()] == ["epoch", "1", "2"]
    with monkeypatch.context() as disk:
        disk.setattr(files, "_flush", full)
        draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert os.listdir(tmp_path) == ["metrics.csv"]  # noqa: PTH208


def table_of(path, epochs):
    table = MetricsTable(path, ["loss_class"])
    for epoch in range(1, epochs + 1):
        table.add({"epoch": epoch, "step": 1, "loss": 1.5, "loss_class": 1.0, "learning_rate": 0.1, "AP": 0.2})
    return path


def test_curves_of_few_epochs_mark_each(tmp_path):
    drawn = {}
    for epochs in (1, 2, 100):
        drawn[epochs] = Figure()
        assert plot_curves(drawn[epochs], table_of(tmp_path / f"{epochs}.csv", epochs))
    one, two, many = ([line.get_marker() for axis in figure.axes for line in axis.lines] for figure in drawn.values())
    assert one == two == ["."] * 4  # loss, its term, AP and the learning rate
    assert sorted(many) == [".", "None", "None", "None"]  # the AP's: not every epoch is scored


@pytest.mark.parametrize("epochs", [1, 2, 3, 20, 300])
def test_curves_have_ticks_at_whole_epochs(tmp_path, monkeypatch, epochs):
    figures = [Figure(figsize=(12, 4))]
    table = table_of(tmp_path / "metrics.csv", epochs)
    plot_curves(figures[0], table)
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    draw_loss(table, tmp_path / "curves.png", "t")
    assert len(figures) == 2
    for axis in (axis for figure in figures for axis in figure.axes):
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert ticks == [round(tick) for tick in ticks]
        assert 1 <= len(ticks) <= 12
        assert ticks == [1] or epochs > 1


def test_a_score_of_zero_is_not_cut_off(tmp_path):
    figure = Figure()
    plot_curves(figure, table_of(tmp_path / "metrics.csv", 1))
    (score,) = (axis for axis in figure.axes if axis.get_title().startswith("Validation"))
    assert not score.lines[0].get_clip_on()


def test_a_clock_says_hours_only_when_there_are_some():
    assert [log.clock(seconds) for seconds in (None, 61, 3661)] == ["-:--", "1:01", "1:01:01"]


def test_scores_that_come_after_the_last_row_join_it(tmp_path):
    file = tmp_path / "metrics.csv"
    table = MetricsTable(file, ["loss_class"])
    table.add({"epoch": 1, "step": 5, "loss_class": 2.0})
    table.amend({"epoch": 1, "step": 5, "AP": 0.25})
    assert [(row["loss_class"], row["AP"]) for row in read_table(file)] == [("2", "0.25")]
    MetricsTable(file, None, resume_epoch=1).amend({"epoch": 1, "step": 5, "AP50": 0.5})  # by a later session
    assert [(row["loss_class"], row["AP"], row["AP50"]) for row in read_table(file)] == [("2", "0.25", "0.5")]
    file.unlink()
    MetricsTable(file, None, resume_epoch=1).amend({"epoch": 1, "step": 5, "AP": 0.5})
    assert [(row["epoch"], row["AP"]) for row in read_table(file)] == [("1", "0.5")]


def test_a_resumed_run_with_other_terms_keeps_those_of_the_epochs_before(tmp_path):
    file = tmp_path / "metrics.csv"
    MetricsTable(file, ["loss_l1", "pseudo_boxes"]).add({"epoch": 1, "step": 5, "loss_l1": 2.0, "pseudo_boxes": 3.5})
    resumed = MetricsTable(file, ["loss_giou", "loss_l1"], resume_epoch=1)
    resumed.add({"epoch": 2, "step": 9, "loss_l1": 1.0, "loss_giou": 0.5})
    columns = ("loss_l1", "pseudo_boxes", "loss_giou")
    assert [tuple(row[name] for name in columns) for row in read_table(file)] == [("2", "3.5", ""), ("1", "", "0.5")]
    assert list(read_table(file)[0])[5:8] == list(columns)


@pytest.mark.parametrize(
    "content",
    [
        b"", bytes(300), b"epoch,loss\nfirst,low\n", b"epoch,loss\n1,low\n", b"epoch,loss\n\xff\xfe,1\n", b"loss\n1\n",
        b"epoch,loss\n1\n", b"epoch,loss\n1.5,2\n", b"epoch,loss\n1,2,3\n", b'epoch,loss\n"1',
        b"epoch,loss\n1," + b"x" * 200_000,
    ],
)  # fmt: skip
def test_a_damaged_table_is_kept_aside_and_a_new_one_begun(tmp_path, caplog, content):
    file = tmp_path / "metrics.csv"
    file.write_bytes(content)
    draw_curves(file, tmp_path / "curves.png")
    assert "its curves are not drawn" in caplog.text
    MetricsTable(file, [], resume_epoch=3).add({"epoch": 4, "step": 1})
    assert (tmp_path / "metrics-damaged.csv").read_bytes() == content
    assert "renamed to metrics-damaged.csv" in caplog.text
    assert [row["epoch"] for row in read_table(file)] == ["4"]
