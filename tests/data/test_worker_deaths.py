"""What happens when workers die, hang or fail."""

import logging
import os
import signal
import sys
import time

import pytest
from faulty_reader import Reader, batches_of, check, children, message, same, unable, wait_for

from ddfnet.data.loader import train_batches
from ddfnet.data.ring import reading
from ddfnet.utils.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows there are no workers")


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dead_worker_is_replaced_and_its_batch_read_again(tmp_path, times, workers, caplog):
    (tmp_path / "fault-13").write_text("k" * times)
    with caplog.at_level(logging.WARNING, logger="ddfnet"):
        check(batches_of(tmp_path, workers=workers))
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "a data worker ended (SIGKILL, as where memory runs out) while reading number 13; another one takes its place"
    ] * times  # fmt: skip


def test_a_sample_that_kills_each_worker_is_named(tmp_path):
    (tmp_path / "fault-13").write_text("kkkk")
    batches = batches_of(tmp_path)
    text, before = message(batches)
    assert before == 3  # those of samples 0 to 11
    assert text.startswith("4 data workers in a row ended while reading number 13, the last with SIGKILL")
    assert not children()
    check(batches)  # the fourth was the last


def test_workers_killed_at_start_are_replaced(tmp_path):
    sampler = [[(0, i, 0) for i in range(start, start + 4)] for start in range(0, 64, 4)]
    batches = train_batches(Reader(tmp_path), sampler, same, device="cpu", workers=2)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    check(batches)


def test_idle_workers_are_replaced(tmp_path):
    batches = batches_of(tmp_path)
    for _ in range(6):
        check(batches)
        for pid in children():
            os.kill(pid, signal.SIGKILL)
    check(batches)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_reader_that_cannot_be_sent(tmp_path, method):
    class Local:
        pass

    with pytest.raises(TypeError, match=f"data.start_method={method} .* can be pickled"):
        iter(batches_of(tmp_path, read=Local(), start_method=method))
    assert not children()


class Poison:
    def __reduce__(self):
        return unable, ()


def test_a_worker_that_cannot_start(tmp_path):
    text, _ = message(batches_of(tmp_path, workers=1, read=Poison(), start_method="forkserver"))
    assert text == "a data worker could not start (exit code 1): its own message stands above"


# --- hanging ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_named(tmp_path):
    (tmp_path / "fault-13").write_text("h")
    text, before = message(batches_of(tmp_path, timeout=3.0))
    assert before == 3
    assert " has not moved for 3 s while reading number 13: " in text
    assert "data.timeout" in text
    assert not children()


def test_a_stopped_worker_is_named_and_ended(tmp_path):
    batches = batches_of(tmp_path, timeout=3.0, workers=1)
    check(batches)
    (pid,) = children()
    os.kill(pid, signal.SIGSTOP)
    text, _ = message(batches)
    assert text.startswith(f"a data worker (process {pid}) has not moved for 3 s while reading number 0 or number 1 or")
    assert wait_for(lambda: not children())


def test_slow_is_not_hanging(tmp_path):
    def read(requests):
        for i in requests:
            reading(i)
            time.sleep(1.5)
        return {}

    assert len(list(batches_of(tmp_path, read=read, timeout=4.0, samples=4))) == 1


def test_time_in_which_nobody_waits_does_not_count(tmp_path):
    batches = iter(batches_of(tmp_path, timeout=3.0))
    seen = [next(batches)]
    time.sleep(4)
    check([*seen, *batches])


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_of_a_reader(tmp_path):
    for letter in "dzl":
        (tmp_path / "fault-13").write_text(letter)
        batches = batches_of(tmp_path)
        kind = {"d": DataError, "z": RuntimeError, "l": ValueError}[letter]
        text, before = message(batches, kind)
        assert before == 3
        assert not children()
        if letter == "z":
            assert text.startswith("reading number 13 failed in a data worker:\n\nTraceback")
            assert text.endswith('raise ZeroDivisionError("a defect")\nZeroDivisionError: a defect\n')
        else:
            assert text == {"d": "the sentence", "l": "of a local class"}[letter]
        check(batches)


def test_a_sample_is_named_without_the_help_of_the_reader(tmp_path):
    def read(requests):
        raise KeyError("a defect")

    text, _ = message(batches_of(tmp_path, read=read), RuntimeError)
    assert text.startswith("reading number 0 or number 1 or number 2 or one of 1 more failed in a data worker")
