"""Progress of long work."""

import pytest

from ddfnet.utils import progress
from ddfnet.utils.progress import ProgressBar, no_progress, note, tracked


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


def test_nothing_shows_within_no_progress_and_on_other_processes(clock, capsys, monkeypatch):
    def work():
        bar = ProgressBar("val")
        bar(0, 100)
        clock[0] += 40
        bar(50, 100)
        bar.close()
        note("next")
        return capsys.readouterr().err

    shown = work()
    assert shown == "val: 50 of 100 images, 1.2/s, 0:00:40 left\nnext\n"
    with no_progress():
        assert work() == ""
        with no_progress(False):  # an inner one that is not quiet leaves it so
            assert work() == ""
    assert work() == shown
    monkeypatch.setenv("RANK", "1")
    assert work() == "next\n"


def test_many_calls_look_at_the_clock_alone(clock, capsys, monkeypatch):
    bar, texts = ProgressBar("files"), []
    monkeypatch.setattr(bar, "_text", lambda *_: texts.append(1) or "")
    for done in range(10_000):
        clock[0] += 0.01
        bar(done, 10_000)
    assert 3 <= len(texts) <= 4  # 100 seconds: a line each half minute


def test_where_there_is_a_bar_already_the_text_goes_to_it(clock, capsys):
    texts = []
    bar = ProgressBar("val", show=lambda done, total, text: texts.append(text))
    for done in (0, 5, 10):
        bar(done, 10)
        clock[0] += 1
    assert texts == ["0 of 10 images", "5 of 10 images, 5.0/s, 0:00:01 left", "10 of 10 images, 5.0/s"]
    assert capsys.readouterr().err == ""
