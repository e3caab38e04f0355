"""The choice of a Mac's GPU, with a fake: no test here computes on one."""

import pytest
import torch

from ddfnet.engine.distributed import device_name, distributed_session, mps_notes
from ddfnet.engine.evaluate import check_precision
from ddfnet.engine.train import train
from ddfnet.evaluation.metrics import ClassificationEvaluator
from ddfnet.tasks import load_config
from ddfnet.utils.errors import ConfigError, UserError

MPS = torch.device("mps")


@pytest.fixture
def mac(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_it_is_taken_when_asked_for(mac):
    with distributed_session("mps") as distributed:
        assert distributed.device == MPS
    assert device_name(MPS) == "Apple GPU (mps)"
    with distributed_session("auto") as distributed:
        assert distributed.device.type == "cpu"


def test_where_there_is_none(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    loaded = load_config(tiny_config, ["run.device=mps", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=r"device mps was asked for, but .*run.device=cpu \(train.py\) or --device cpu"):
        train(loaded)
    assert not (tmp_path / "run").exists()


def test_it_takes_one_process(mac, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="device mps takes one process"), distributed_session("mps"):
        pass


def test_what_is_said_of_missing_operations(monkeypatch):
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    (note,) = mps_notes(MPS)
    assert "set PYTORCH_ENABLE_MPS_FALLBACK=1 before the start" in note
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    assert "run on the CPU, slowly" in mps_notes(MPS)[0]
    assert mps_notes(torch.device("cpu")) == []


def test_loss_scaling_is_refused_before_anything_is_written(mac, tiny_config, tmp_path):
    loaded = load_config(tiny_config, ["run.device=mps", "train.precision=fp16", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match=r"train.precision=fp16 .* run.device=mps: use bf16 or fp32"):
        train(loaded)
    assert not (tmp_path / "run").exists()
    check_precision(MPS, "bf16")
    check_precision(torch.device("cpu"), "fp16")


def test_sums_in_float64_are_not_on_it():
    """There is no float64 in Metal, and no mps here: a tensor on it could not be made."""
    evaluator = ClassificationEvaluator(MPS)
    evaluator.update_logits(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    assert evaluator.totals.device.type == "cpu"
    assert evaluator.compute([evaluator.state()])["top1"] == 50.0
