"""The same numbers however a batch is spread over processes and micro-batches."""

import pytest
import torch

from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.files import read_jsonl
from tests.conftest import launch
from tests.processes import launch_forked

TOLERANCE = 2e-5  # relative; sums run in another order


def losses(folder):
    records = read_jsonl(folder / "metrics.jsonl")
    return torch.tensor([record["loss"] for record in records if record["kind"] == "train"], dtype=torch.float64)


def run_here(config, folder, *overrides):
    assert train(load_config(config, [f"run.dir={folder}", *overrides])) == 0
    return losses(folder)


def run_two_processes(config, folder, *overrides, start=launch_forked):
    result = start("train.py", "--config", config, f"run.dir={folder}", *overrides, processes=2)
    assert result.returncode == 0, result.stderr
    return losses(folder)


@pytest.mark.parametrize("repeats", [1, 3])
def test_two_processes_equal_two_micro_batches(tiny_config, tmp_path, repeats):
    """Augmentation, erasing, mixup and dropout included: all are keyed by the place in the run."""
    noisy = ("augment.erasing.p=0.5", "augment.mixup=0.2", "model.drop_rate=0.2", "train.ema={decay: 0.9}")
    noisy = (*noisy, f"augment.repeats={repeats}")
    one = run_here(tiny_config, tmp_path / "one", *noisy)
    # once as a user starts them, with all there is at the end of a process
    start = launch if repeats == 1 else launch_forked
    two = run_two_processes(tiny_config, tmp_path / "two", *noisy, start=start)
    assert len(one) == len(two) == 12
    torch.testing.assert_close(two, one, rtol=TOLERANCE, atol=0)
    assert one.std() > 0


def test_synchronized_batch_norm_equals_the_whole_batch(tiny_config, tmp_path):
    whole = run_here(tiny_config, tmp_path / "one", "train.device_batch_size=8")
    synced = run_two_processes(tiny_config, tmp_path / "two", "train.sync_bn=true")
    torch.testing.assert_close(synced, whole, rtol=TOLERANCE, atol=0)
    # ... evaluation included: the running statistics agree as well
    of = {name: torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("one", "two")}
    for key in ("bn1.running_mean", "bn1.running_var", "layer4.0.bn3.running_var", "fc.weight"):
        torch.testing.assert_close(of["two"]["model"][key], of["one"]["model"][key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["last.pt", "best.pt"])
def test_local_statistics_would_differ_without_averaging(tiny_config, tmp_path, kind):
    """Two processes keep their own running statistics; a checkpoint holds their mean."""
    run_two_processes(tiny_config, tmp_path / "two", "train.epochs=1")
    last = torch.load(tmp_path / "two" / "last.pt", weights_only=True)
    model = torch.load(tmp_path / "two" / kind, weights_only=True)["model"]
    local = last["local"]["model"]
    assert local.shape[0] == 2
    assert not torch.equal(local[0], local[1])
    mean = torch.cat([v.flatten() for k, v in model.items() if "running" in k])
    torch.testing.assert_close(mean, local.mean(0))
