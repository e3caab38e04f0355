"""The loss of classification against sums written out term by term, and timm's own."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy

from ddfnet.tasks.losses import ClassificationLoss, LossConfig, build_loss, class_weights, describe_weights
from ddfnet.utils.errors import ConfigError

W = [0.5, 2.0, 0.25, 1.25]


def by_hand(logits, targets, weights):
    """-sum_c t_c w_c log softmax(logits)_c, mean over images, in Python's float64."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        norm = math.log(sum(math.exp(value) for value in row))
        total -= sum(t * w * (value - norm) for value, t, w in zip(row, target, weights, strict=True))
    return total / len(logits)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(6, 4), torch.tensor([0, 1, 1, 3, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_cross_entropy_of_labels_and_of_their_rows(batch, smoothing):
    logits, labels = batch
    rows = F.one_hot(labels, 4) * (1 - smoothing) + smoothing / 4
    loss = ClassificationLoss(LossConfig(label_smoothing=smoothing, class_weights=W), torch.tensor(W), outputs=4)
    expected = by_hand(logits, rows, W)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    assert loss(logits, rows).item() == pytest.approx(expected, rel=1e-5)  # mixed targets come smoothed
    halves = (loss(logits[:3], labels[:3]) + loss(logits[3:], labels[3:])) / 2
    assert halves.item() == pytest.approx(expected, rel=1e-5)  # micro-batches add up


def test_without_weights_it_is_torchs_to_the_bit(batch):
    logits, labels = batch
    loss = ClassificationLoss(LossConfig(label_smoothing=0.1), None, outputs=4)
    assert torch.equal(loss(logits, labels), F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_weighted_bce_weighs_outputs(batch):
    logits, labels = batch
    target = F.one_hot(labels, 4).float()
    p = logits.double().sigmoid()
    terms = -(3 * target * p.log() + (1 - target) * (1 - p).log()) * torch.tensor(W)
    config = LossConfig(name="bce", class_weights=W, bce_pos_weight=3)
    loss = ClassificationLoss(config, torch.tensor(W), outputs=4)(logits, labels)
    assert loss.item() == pytest.approx(terms.mean().item(), rel=1e-5)
    summed = ClassificationLoss(config.model_copy(update={"bce_sum": True}), torch.tensor(W), outputs=4)
    assert summed(logits, labels).item() == pytest.approx(terms.sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("keys", [{}, {"bce_sum": True}, {"bce_pos_weight": 2.5}, {"bce_threshold": 0.3}])
def test_bce_is_timms(batch, keys):
    logits, labels = batch
    mixed = torch.full((6, 4), 0.1).scatter_(1, labels[:, None], 0.7)
    theirs = BinaryCrossEntropy(
        0.1, sum_classes=keys.get("bce_sum", False), pos_weight=keys.get("bce_pos_weight"),
        target_threshold=keys.get("bce_threshold"),
    )  # fmt: skip
    ours = ClassificationLoss(LossConfig(name="bce", label_smoothing=0.1, **keys), None, outputs=4)
    for target in (labels, mixed):
        assert torch.equal(ours(logits, target), theirs(logits, target))


def test_auto_weights_are_inverse_frequencies_of_mean_one():
    weights = class_weights("auto", np.array([10, 20, 40]), ["a", "b", "c"])
    assert weights.tolist() == pytest.approx([12 / 7, 6 / 7, 3 / 7])  # 4 : 2 : 1
    assert weights.mean().item() == pytest.approx(1)
    assert describe_weights(weights, ["a", "b", "c"]) == "class weights: a 1.71, b 0.857, c 0.429"
    many = [str(i) for i in range(21)]
    assert describe_weights(torch.arange(1, 22), many) == "class weights of 21 classes: 1 to 21"


def test_outputs_beyond_the_classes_weigh_one():
    loss, (line,) = build_loss(LossConfig(class_weights=[2, 3]), np.array([1, 1]), ["a", "b"], outputs=4)
    assert loss.weights.tolist() == [2, 3, 1, 1]
    assert line == "class weights: a 2, b 3"


@pytest.mark.parametrize(
    ("wanted", "counts", "message"),
    [
        ([1, 2], [3, 3, 3], "2 values, the training images have 3 classes: give one for each, in this order: a, b, c"),
        ([0, 0, 0], [3, 3, 3], "all 0"),
        ("auto", [3, 0, 3], "class b has no training images"),
    ],
)
def test_mistakes(wanted, counts, message):
    with pytest.raises(ConfigError, match=rf"loss\.class_weights.*{message}"):
        class_weights(wanted, np.array(counts), ["a", "b", "c"])
