"""feed.py measures the loader, the model and both of a configuration."""

import itertools
import json
import time

import pytest

from ddfnet.data.dataset import TrainDataset
from ddfnet.engine.trainer import Trainer
from scripts.benchmarks.feed import main

OVERRIDES = ["train.batch_size=4", "train.device_batch_size=2", "data.workers=1", "data.cache=none"]


@pytest.fixture
def arguments(tiny_config, tmp_path):
    options = ["--steps", "2", "--rounds", "2", "--json", str(tmp_path / "feed.json")]
    return ["--config", str(tiny_config), *OVERRIDES, *options]


def test_each_part_takes_what_it_takes(arguments, tmp_path, monkeypatch, capsys):
    """A reader that needs 20 ms for two images, a step that needs 50 ms: both can be told from the figures."""
    read, step, steps = TrainDataset.read, Trainer.train_step, itertools.count()

    def slow_read(self, requests):
        time.sleep(0.020)
        return read(self, requests)

    def slow_step(self, batches):
        next(steps)
        step(self, batches)
        time.sleep(0.050)

    monkeypatch.setattr(TrainDataset, "read", slow_read)
    monkeypatch.setattr(Trainer, "train_step", slow_step)
    assert main(arguments) == 0
    report = json.loads((tmp_path / "feed.json").read_text())
    assert {len(report[name]) for name in ("loader", "model", "both", "waiting")} == {2}
    assert next(steps) == 2 * (2 + 2 * 2)  # of model and both, with those that warm up
    assert max(report["model"] + report["both"]) < 4 / 0.050
    assert all(0 <= share <= 1 for share in report["waiting"])
    assert report["settings"] == {"overrides": OVERRIDES, "steps": 2, "batch": 4}
    assert report["workers"] == 1
    text = capsys.readouterr().out
    assert "1 loader processes" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("| ")][2:] == ["loader", "model", "both"]


def test_it_stops_as_a_run_would(arguments, capsys):
    with pytest.raises(ValueError, match=r"train\.batch_size"):
        main([*arguments, "train.batch_size=100000", "train.device_batch_size=100000"])
