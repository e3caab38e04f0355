"""Batched operations of policies on CUDA against the CPU, and erasing without waiting for the device."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))  # for policy_cases

import numpy as np
import pytest
import torch

pytest.importorskip("pydantic")  # of the configuration, which the other tests here do without

import policy_cases as cases
from gpu_cases import DEVICE, needs_cuda

from ddfnet.data.augment import AugmentConfig, ErasingConfig
from ddfnet.data.erasing import BatchErasing
from ddfnet.data.policy import Policy, apply_policy
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.rng import POLICY, uniforms

pytestmark = pytest.mark.gpu


def levels_apart(images, table, fill=cases.FILL):
    """Between the device and the CPU, int (B, 3, H, W)."""
    made = apply_policy(images.to(DEVICE), table, fill)
    assert made.device.type == DEVICE.type
    return (made.cpu().int() - apply_policy(images, table, fill).int()).abs()


@pytest.mark.parametrize("size", [224, 37, 2])
@pytest.mark.parametrize(("op", "mode"), cases.CASES, ids=cases.ids)
def test_every_operation_gives_the_cpus_pixels(op, mode, size):
    pixels = cases.images(size)
    apart = levels_apart(cases.channels_first(pixels), cases.table(op, mode, len(pixels), size))
    assert apart.max() <= 1
    if size > 3:
        assert (apart > 0).float().mean() < 1e-3


@pytest.mark.parametrize("recipe", [None, "rand-m7-mstd0.5-inc1", "rand-m9-inc1-t3aw-n3", "original", "3a"])
def test_policies_one_layer_at_a_time(recipe):
    policy = Policy.of(AugmentConfig(rand_augment=recipe), Preprocessing(size=64))
    table = policy.draw(uniforms(POLICY, 0, 0, range(96), [0] * 96, policy.count))
    images = cases.channels_first(cases.images(64, 96))
    for layer in range(table.shape[1]):
        one = table[:, layer : layer + 1]
        assert levels_apart(images, one, policy.fill).max() <= 1
        images = apply_policy(images, one, policy.fill)


@needs_cuda
def test_nothing_waits_for_the_device():
    count = 256
    policy = Policy.of(AugmentConfig(rand_augment="rand-m9-mstd0.5-t3aw-p1-n4"), Preprocessing(size=32))
    tables = [policy.draw(uniforms(POLICY, 0, epoch, range(count), [0] * count, policy.count)) for epoch in (0, 1)]
    images = cases.channels_first(cases.images(32, count)).to(DEVICE)
    erasing = BatchErasing(ErasingConfig(p=0.5), device=DEVICE, seed=0)
    index, repeat = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    noisy = torch.zeros(count, 3, 32, 32, device=DEVICE)
    for epoch, table in enumerate(tables):  # what starts CUDA's libraries may wait, the second round must not
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")
        try:
            apply_policy(images, table, policy.fill)
            erasing(noisy, epoch, index, repeat)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_memory_stays_bounded():
    """Whatever the batch: a copy of it, and 300 MB."""
    count = 512
    images = torch.zeros(count, 3, 224, 224, dtype=torch.uint8, device=DEVICE)
    for op, mode in cases.CASES:
        table = np.tile(np.array([[[op, 1.5, mode]]], np.float32), (count, 1, 1))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        apply_policy(images, table, cases.FILL)
        assert torch.cuda.max_memory_allocated() - before < images.numel() + 300e6, op.name
