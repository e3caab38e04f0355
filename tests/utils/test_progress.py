"""Progress of long work."""

import pytest

from ddfnet.utils import progress
from ddfnet.utils.progress import ProgressBar, tracked


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_where_there_is_no_terminal_a_line_now_and_then(clock, capsys):
    bar = ProgressBar("val")
    for done in range(0, 1001, 10):  # ten images a second
        bar(done, 1000)
        clock[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "val: 300 of 1,000 images, 10/s, 0:01:10 left",
        "val: 600 of 1,000 images, 10/s, 0:00:40 left",
        "val: 900 of 1,000 images, 10/s, 0:00:10 left",
        "val: 1,000 of 1,000 images, 10/s",
    ]


def test_quick_work_and_quiet_work_are_silent(clock, capsys):
    assert list(tracked("abc", 3, ProgressBar("quick"))) == ["a", "b", "c"]
    quiet = ProgressBar("quiet", quiet=True)
    clock[0] += 1000
    quiet(1, 2)
    assert capsys.readouterr().err == ""


def test_what_was_done_before_does_not_count_as_speed(clock, capsys):
    bar = ProgressBar(unit="files")
    bar(500, 1000)
    clock[0] += 50
    bar(550, 1000)
    assert capsys.readouterr().err == "files: 550 of 1,000 files, 1.0/s, 0:07:30 left\n"


def test_a_second_round_begins_anew(clock, capsys):
    bar = ProgressBar("val")
    for _ in range(2):
        bar(0, 100)
        clock[0] += 40
        bar(100, 100)
    assert capsys.readouterr().err.splitlines() == 2 * ["val: 100 of 100 images, 2.5/s"]
