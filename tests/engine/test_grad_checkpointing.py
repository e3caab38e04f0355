"""Gradient checkpointing changes memory and time, and not one bit of a run."""

import pytest
import torch
from torch import nn

import ddfnet
from ddfnet.engine.grad_checkpointing import checkpoint_gradients, kept_buffers
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.errors import ConfigError
from tests.engine.runs import assert_resumes_exactly, whole_run
from tests.engine.test_distributed_equivalence import TOLERANCE, run_here, run_two_processes
from tests.engine.test_resume import assert_same_bits

ON = "train.grad_checkpointing=true"


def step(name, checkpointing, **kwargs):
    torch.manual_seed(0)
    model = ddfnet.create_model(name, num_classes=3, **kwargs).train()
    saved = []
    if checkpointing:
        checkpoint_gradients(model)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        loss = model(torch.randn(2, 3, 32, 32)).square().sum()
    with kept_buffers(model):
        loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    return gradients, model.state_dict(), sum(saved)


@pytest.mark.parametrize("name", ["ddf_mul_resnet14_32px", "ddf_add_resnet18", "resnet14_32px"])
def test_same_gradients_and_statistics_from_less_that_is_kept(name):
    """Stochastic depth draws the same in both passes."""
    gradients, state, kept = step(name, False, drop_path_rate=0.3)
    again, state_again, kept_again = step(name, True, drop_path_rate=0.3)
    assert_same_bits(again, gradients)
    assert_same_bits(state_again, state)
    assert kept_again < kept / 2


class Counted(nn.Module):
    """A batch norm, and a buffer that something else writes during the backward pass."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("steps", torch.zeros(()))


def test_other_buffers_may_change_in_the_backward_pass():
    model = Counted().train()
    with kept_buffers(model):
        model.norm(torch.ones(2, 2, 1, 1))
        model.steps += 1
    assert model.steps == 1
    assert model.norm.running_mean.tolist() == [0, 0]
    assert model.norm.num_batches_tracked == 0


def test_statistics_are_put_back_after_an_error_too():
    model = Counted().train()

    def fails():
        with kept_buffers(model):
            model.norm(torch.ones(2, 2, 1, 1))
            raise MemoryError

    with pytest.raises(MemoryError):
        fails()
    assert model.norm.running_mean.tolist() == [0, 0]
    assert model.norm.num_batches_tracked == 0


def test_a_run_has_the_same_bits_and_resumes(tiny_config, tmp_path, monkeypatch):
    keys = ("train.ema={decay: 0.9}", "model.drop_rate=0.1", "train.freeze=[layer1]")
    plain = whole_run(tiny_config, tmp_path / "plain", *keys)
    checkpointed = assert_resumes_exactly(tiny_config, tmp_path, monkeypatch, ON, *keys)
    for key in ("model", "ema", "optimizer", "local", "best"):
        assert_same_bits(checkpointed[key], plain[key], key)


@pytest.mark.parametrize("sync", ["false", "true"])
def test_two_processes(tiny_config, tmp_path, sync):
    two = run_two_processes(tiny_config, tmp_path / "two", ON, f"train.sync_bn={sync}", "train.epochs=2")
    size = "train.device_batch_size=8" if sync == "true" else "train.device_batch_size=4"
    one = run_here(tiny_config, tmp_path / "one", "train.epochs=2", size)
    torch.testing.assert_close(two, one, rtol=TOLERANCE, atol=0)


def test_networks_without_it_are_refused(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.grad_checkpointing=true: Linear has no gradient checkpointing"):
        checkpoint_gradients(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="DLA has no gradient checkpointing"):
        train(load_config(tiny_config, [ON, "model.name=dla46_c", "data.input.size=32", f"run.dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()
