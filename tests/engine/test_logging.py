"""metrics.jsonl survives crashes and restarts; the console line is short and plain."""

import itertools
import json
import logging

import pytest

from ddfnet.engine.logging import RunLog, duration
from ddfnet.engine.training_records import Meter
from ddfnet.utils import progress
from ddfnet.utils.files import read_jsonl

RECORD = {
    "epoch": 0.5, "loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "images_per_second": 12_345.6, "data_wait": 0.031,
    "eta_seconds": 3 * 86_400 + 7_200,
}  # fmt: skip


def make(folder, **changes):
    return RunLog(folder, **{"active": True, "total_steps": 100, **changes})


def test_records_after_the_resumed_step_are_dropped_and_a_cut_line_is_survived(tmp_path):
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "tra')
    log = make(tmp_path)
    log.start(2)
    log.train(3, 100, RECORD)
    log.close()
    assert [(r["step"], r["loss"]) for r in read_jsonl(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_not_a_number_stays_valid_json(tmp_path):
    log = make(tmp_path)
    log.start(0)
    log.evaluation(4, 1.0, "val", {"top1": 0.0, "loss": float("nan"), "n": 3})
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None


def test_columns_stay_after_the_tenth_epoch(tmp_path, capsys):
    log = make(None, epochs=24)
    for epoch in (9.5, 10.5):
        log.train(7, 100, {**RECORD, "epoch": epoch})
        log.evaluation(7, epoch, "val", {"top1": 50.0, "n": 2}, percentages=["top1"])
    log.close()
    training, evaluation, *_ = capsys.readouterr().out.splitlines()
    assert training.startswith("epoch  9.50  step")
    assert evaluation == "epoch  9.50  val  top1 50.00  n 2"


def test_console_line(tmp_path, capsys):
    log = make(tmp_path)
    log.start(0)
    log.train(7, 100, RECORD)
    log.train(93, 100, {**RECORD, "lr": 2.99e-4, "images_per_second": 8.25, "data_wait": 0.31, "eta_seconds": 9})
    log.evaluation(100, 1.0, "val", {"top1": 50.0, "loss": 2.0, "n": 2}, percentages=["top1"], best=True)
    log.close()
    dry = make(None)
    dry.evaluation(2, 1.0, "val", {"top1": 50.0, "loss": 2.0, "n": 2}, percentages=["top1"], best=True)
    dry.close()
    assert capsys.readouterr().out.splitlines() == [
        "epoch 0.50  step   7/100  loss 2.0000  lr 1.00e-01  12,346 img/s  wait  3%  eta 3d 02h",
        "epoch 0.50  step  93/100  loss 2.0000  lr 2.99e-04    8.2 img/s  wait 31%  eta 0:00:09",
        "epoch 1.00  val  top1 50.00  loss 2.0000  n 2  new best",
        "epoch 1.00  val  top1 50.00  loss 2.0000  n 2",
    ]


def test_information_of_other_parts_looks_as_the_lines_of_the_log(capsys, monkeypatch):
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        log = make(None, quiet=True)
        logging.getLogger("ddfnet").info("/path: %d images [x]", 35)
        log.warning("[y]")
        log.close()
        printed = capsys.readouterr()
        lines = (printed.out + printed.err).splitlines()
        assert lines[0] == "/path: 35 images [x]"
        assert ("WARNING" in lines[1]) is terminal


def test_long_messages_break_between_words_on_a_terminal_alone(capsys, monkeypatch):
    text = "images: " + "word " * 30 + "/a/path/that/stays/whole"
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.setenv("COLUMNS", "80")
        log = make(None)
        log.message(text)
        log.close()
        lines = capsys.readouterr().out.splitlines()
        assert " ".join(line.strip() for line in lines) == text
        assert (len(lines) > 1 and max(map(len, lines)) < 80) is terminal


def test_a_quiet_log_keeps_evaluations_messages_and_the_file(tmp_path, capsys):
    log = make(tmp_path, quiet=True)
    log.start(0)
    log.message("note: hello")
    log.train(7, 100, RECORD)
    log.evaluation(7, 0.5, "val", {"top1": 50.0, "n": 2}, percentages=["top1"])
    log.close()
    assert capsys.readouterr().out.splitlines() == ["note: hello", "epoch 0.50  val  top1 50.00  n 2"]
    assert [record["kind"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == ["train", "val"]


@pytest.mark.parametrize("terminal", [False, True])
def test_evaluations_show_how_far_they_are(tmp_path, capsys, monkeypatch, terminal):
    clock = itertools.count(0.0, 40.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    for quiet in (False, True):
        log = make(None, quiet=quiet)
        log.start(0)
        bar = log.progress("val_ema")
        for done in (0, 30, 60):
            bar(done, 60)
        if terminal and not quiet:
            log._progress.refresh()
        log.close()
        out = capsys.readouterr()
        assert (("60 of 60 images" in out.out + out.err) and "val_ema" in out.out + out.err) is not quiet
        assert terminal or out.out == ""


def test_the_bar_is_that_of_what_it_counts(monkeypatch):
    """Training before the first record, an evaluation, then training again."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = make(None)
    log.start(0)
    (task,) = log._progress.tasks

    def shown():
        return task.completed, task.total, task.description, task.fields["text"]

    log.tick(3)
    assert shown() == (3, 100, "training", "step 3 of 100")
    bar = log.progress("val")
    bar(0, 60)
    assert shown() == (0, 60, "val", "0 of 60 images")
    log.evaluation(3, 0.5, "val", {"top1": 50.0, "n": 2}, percentages=["top1"])
    log.train(7, 100, RECORD)
    latest = shown()
    assert latest[:2] == (7, 100)
    assert latest[2].startswith("epoch ")
    log.progress("val")(0, 60)
    log.tick(8)
    assert shown() == (8, *latest[1:])
    log.close()


def test_other_processes_are_silent(tmp_path, capsys):
    log = make(tmp_path, active=False)
    log.start(0)
    log.message("hello")
    log.train(7, 100, RECORD)
    log.close()
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_durations():
    assert [duration(s) for s in (0, 59.6, 3_661, 86_399, 90_000)] == [
        "0:00:00",
        "0:01:00",
        "1:01:01",
        "23:59:59",
        "1d 01h",
    ]


def test_meter_counts_images_and_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = Meter()
    meter.add(30, 0.5)
    meter.add(10, 0.5)
    now[0] += 4
    assert meter.read() == (10.0, 0.25)
    now[0] += 2
    assert meter.read() == (0.0, 0.0)
