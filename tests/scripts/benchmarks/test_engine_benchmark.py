"""The benchmark of the engine: both loops take the steps that are counted; a first step is found in what is printed."""

import sys

import pytest
import torch

from scripts.benchmarks import engine
from scripts.benchmarks.engine_loops import Alternating, Measured


def test_overhead_prints_a_row_for_each_number_of_processes(capfd):
    assert engine.main(["overhead", "--blocks", "5", "--block", "1", "--batch", "4", "--size", "16"]) == 0
    row = [cell.strip() for cell in capfd.readouterr().out.strip().splitlines()[-1].strip("|").split("|")]
    assert row[:4] == ["ddf_mul_resnet14_32px", "1", "4", "16"]
    assert float(row[4]) > 0
    assert float(row[5]) > 0
    assert row[9] == "3"  # 5 blocks, of which 2 warm up


class Task:
    """As much of a task as `Alternating` asks for."""

    class config:
        class train:
            channels_last = False

        class optim:
            momentum, weight_decay = 0.9, 0.0

    def build_model(self):
        return torch.nn.Linear(2, 3)


def test_blocks_of_both_loops_alternate(monkeypatch):
    batch = {"image": torch.zeros(4, 2), "target": torch.zeros(4, dtype=torch.long)}
    loops, order = Alternating(Task(), batch, torch.device("cpu"), block=2, blocks=3), []
    monkeypatch.setattr(loops, "_bare_step", lambda *_: order.append("bare"))
    for _ in range(6):
        next(loops)
        order.append("engine")
    with pytest.raises(Measured):
        next(loops)
    assert order == ["bare", "bare", "engine", "engine"] * 3
    assert (len(loops.engine), len(loops.bare)) == (3, 3)


def test_the_first_step_is_found():
    lines = "print('resuming step 3'); time.sleep(0.2); [print('step', i) for i in range(1, 9)]"
    code = f"import time; {lines}; time.sleep(60)"
    assert 0.2 <= engine._seconds_to([sys.executable, "-c", code], "step ", 3) < 60


def test_a_command_without_a_step_is_an_error():
    with pytest.raises(RuntimeError, match="took no step: nothing to train"):
        engine._seconds_to([sys.executable, "-c", "print('nothing to train')"], "step ", 1)
