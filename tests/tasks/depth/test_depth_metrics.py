"""RMSE of depth, worked by hand."""

import math

import pytest
import torch

from ddfnet.tasks.depth.baselines import BASELINES
from ddfnet.tasks.depth.data import normalize_guidance
from ddfnet.tasks.depth.metrics import DepthEvaluator

NAN = float("nan")


class Constant(torch.nn.Module):
    """Predicts one depth everywhere."""

    def __init__(self, depth):
        super().__init__()
        self.depth, self.calls = depth, 0

    def forward(self, low, guidance):
        self.calls += 1
        return torch.full((len(low), 1, *guidance.shape[2:]), self.depth)


def batch(depth, valid, index):
    depth, valid = torch.tensor(depth)[:, None], torch.tensor(valid, dtype=torch.bool)[:, None]
    guidance = normalize_guidance(torch.zeros(len(depth), 3, *depth.shape[2:], dtype=torch.uint8))
    low = torch.ones(len(depth), 1, depth.shape[2] // 2, depth.shape[3] // 2)
    return {"low": low, "guidance": guidance, "depth": depth, "valid": valid, "index": torch.tensor(index)}


# The prediction is 1 m. Errors: image 0: 0.3, 0.4 (and one that does not count); image 1: 0.5, four times.
HAND = batch([[[1.3, 0.6], [NAN, 0.0]], [[1.5, 0.5], [0.5, 1.5]]], [[[1, 1], [0, 0]], [[1, 1], [1, 1]]], [4, 7])


def test_hand_worked_case():
    evaluator = DepthEvaluator(factor=2)
    evaluator.update(Constant(1.0), HAND)
    metrics = evaluator.compute([evaluator.state()])
    first = math.sqrt((0.09 + 0.16) / 2)  # 0.353553 m
    assert metrics["rmse"] == pytest.approx(100 * (first + 0.5) / 2, rel=1e-6)
    assert metrics["rmse_pixels"] == pytest.approx(100 * math.sqrt((0.25 + 4 * 0.25) / 6), rel=1e-6)
    assert metrics["n"] == 2
    assert set(metrics) == {"rmse", "rmse_pixels", "n"}


def test_the_number_of_processes_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    whole = DepthEvaluator(factor=2, baselines={})
    parts = [DepthEvaluator(factor=2, baselines={}) for _ in range(3)]
    for i in range(11):
        depth = torch.rand(1, 8, 6, generator=generator) * 10 ** (i % 4)
        one = batch(depth.tolist(), (depth > 0.3).tolist(), [i])
        whole.update(Constant(0.5), one)
        parts[i % 3].update(Constant(0.5), one)
    expected = whole.compute([whole.state()])
    assert parts[0].compute([part.state() for part in parts]) == expected
    assert parts[0].compute([parts[2].state(), parts[0].state(), parts[1].state()]) == expected
    assert expected["n"] == 11


def test_images_without_a_measurement():
    evaluator = DepthEvaluator(factor=2)
    evaluator.update(Constant(1.0), HAND)
    alone = evaluator.compute([evaluator.state()])
    evaluator.update(Constant(1.0), batch([[[0.0, 0.0], [0.0, 0.0]]], [[[0, 0], [0, 0]]], [5]))
    assert evaluator.compute([evaluator.state()]) == {**alone, "n": 3}
    nothing = DepthEvaluator(factor=2)
    assert nothing.compute([nothing.state()])["n"] == 0
    assert math.isnan(nothing.compute([[]])["rmse"])


def test_baselines_are_found_once(monkeypatch):
    calls = []
    for name in list(BASELINES):
        upsample = BASELINES[name]
        monkeypatch.setitem(BASELINES, name, lambda *a, name=name, up=upsample: calls.append(name) or up(*a))
    known, model, results = {}, Constant(1.0), []
    for _ in range(3):
        evaluator = DepthEvaluator(factor=2, baselines=known)
        evaluator.update(model, HAND)
        results.append(evaluator.compute([evaluator.state()]))
    assert model.calls == 3
    assert sorted(calls) == sorted(BASELINES)
    assert results[0] == results[1] == results[2]
    # low is 1 m everywhere: every method predicts what the constant network does
    for name in BASELINES:
        assert results[0][f"rmse_{name}"] == pytest.approx(results[0]["rmse"], rel=1e-6)


def test_sums_are_float64():
    """A quarter of a million errors of 0.5 m, and one of 64 m whose square float32 sums would round."""
    depth = torch.full((1, 1, 512, 512), 8.0)
    depth[0, 0, 0, 0] = 8.5 + 64
    part = {**HAND, "depth": depth, "valid": torch.ones_like(depth, dtype=torch.bool), "index": torch.tensor([0])}
    part["guidance"] = torch.zeros(1, 3, 512, 512)
    evaluator = DepthEvaluator(factor=2)
    evaluator.update(Constant(8.5), {**part, "low": torch.ones(1, 1, 256, 256)})
    (record,) = evaluator.state()
    assert record[1][""] == (0.25 * (512**2 - 1) + 64**2, 512**2)
