"""Rows per image and what is computed from them, against definitions spelled out."""

import math
import os

import pytest
import torch

from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.dataset import EvalDataset
from ddfnet.data.loader import eval_batches
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources.folder import index_folder
from ddfnet.evaluation.class_names import imagenet_classes, in_order_of_number, known_classes, readable_names
from ddfnet.evaluation.metrics import ClassificationEvaluator
from ddfnet.evaluation.predictions import PredictionEvaluator, Predictions
from ddfnet.evaluation.statistics import Confusion, calibration, class_rows, confusions, worst_mistakes


class Lookup(torch.nn.Module):
    """Logits by the value of an image's first pixel, so that a mirrored image has others."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, image):
        return self.logits[image[:, 0, 0, 0].long()]


def batches(target, *, size=4, order=None):
    """Images 0 to N - 1; the right edge of image i shows i + N."""
    n = len(target)
    image = torch.zeros(n, 3, 2, 2)
    image[:, :, :, 0] = torch.arange(n).view(n, 1, 1).float()
    image[:, :, :, 1] = torch.arange(n, 2 * n).view(n, 1, 1).float()
    index = torch.arange(n)
    for part in (torch.arange(n) if order is None else order).split(size):
        yield {"image": image[part], "target": target[part], "index": index[part]}


def evaluated(logits, target, **options):
    evaluator = PredictionEvaluator(**options)
    for batch in batches(target):
        evaluator.update(Lookup(logits), batch)
    return evaluator.compute([evaluator.state()]), evaluator.predictions


@pytest.fixture
def case():
    torch.manual_seed(0)
    return torch.randn(26, 7), torch.randint(0, 7, (13,))


def test_metrics_are_those_of_the_training_loop(case):
    logits, target = case
    metrics, predictions = evaluated(logits, target)
    plain = ClassificationEvaluator(torch.device("cpu"))
    plain.update_logits(logits[:13], target)
    expected = plain.compute([plain.state()])
    assert metrics == pytest.approx(expected, rel=1e-12)
    assert predictions.confidence.tolist() == pytest.approx(logits[:13].softmax(1).max(1).values.tolist())
    assert predictions.top.tolist() == logits[:13].topk(5).indices.tolist()


def test_states_of_processes_are_put_in_order_and_one_may_be_empty(case):
    logits, target = case
    expected, alone = evaluated(logits, target)
    evaluators = [PredictionEvaluator() for _ in range(4)]
    for evaluator, order in zip(evaluators, torch.arange(13).flip(0).split(5), strict=False):
        for batch in batches(target, size=2, order=order):
            evaluator.update(Lookup(logits), batch)
    states = [evaluator.state() for evaluator in evaluators]
    assert states[3] == ()
    assert evaluators[0].compute(states) == expected
    assert torch.equal(evaluators[0].predictions.top, alone.top)
    with pytest.raises(RuntimeError, match="twice"):
        evaluators[0].compute([*states, states[1]])


def test_mirror_averages_the_two_softmaxes(case):
    logits, target = case
    metrics, predictions = evaluated(logits, target, mirror=True)
    mean = (logits[:13].double().softmax(1) + logits[13:].double().softmax(1)) / 2
    assert predictions.predicted.tolist() == mean.argmax(1).tolist()
    assert predictions.confidence.tolist() == pytest.approx(mean.max(1).values.tolist(), rel=1e-5)
    losses = [-math.log(mean[i, label]) for i, label in enumerate(target)]
    assert metrics["loss"] == pytest.approx(sum(losses) / 13, rel=1e-5)


def test_only_the_columns_compete(case):
    logits, _ = case
    logits[:, 0] += 50  # would win everywhere
    target = torch.arange(13) % 3
    metrics, predictions = evaluated(logits, target, columns=[5, 1, 2])
    part = logits[:13][:, [5, 1, 2]]
    assert predictions.predicted.tolist() == part.argmax(1).tolist()
    assert metrics["top1"] == pytest.approx(100 * (part.argmax(1) == target).double().mean().item())
    assert metrics["top5"] == 100
    assert predictions.confidence.tolist() == pytest.approx(part.softmax(1).max(1).values.tolist())


def test_every_accepted_label_is_correct(case):
    logits, target = case
    best = logits[:13].argsort(1, descending=True)
    accepted = torch.full((13, 2), -1)
    accepted[:, 0] = best[:, 6]  # the last of all
    accepted[4:, 1] = best[4:, 3]  # fourth
    accepted[9:, 1] = best[9:, 0]  # first
    metrics, predictions = evaluated(logits, target, accepted=accepted)
    assert (predictions.correct.sum(), predictions.correct5.sum()) == (4, 9)
    assert metrics["top1"] == pytest.approx(400 / 13)
    assert metrics["top5"] == pytest.approx(900 / 13)


def test_the_columns_go_to_the_device_once():
    evaluator = PredictionEvaluator(columns=[5, 1, 2])
    with torch.device("meta"):
        batch = {"image": torch.empty(4, 3, 2, 2), "target": torch.empty(4, dtype=torch.int64)}
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 7, device="meta"))
    evaluator.update(network, {**batch, "index": torch.arange(4)})
    columns = evaluator.columns
    assert columns.device.type == "meta"
    evaluator.update(network, {**batch, "index": torch.arange(4, 8)})
    assert evaluator.columns is columns


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_batches_of_loader_workers_leave_no_files_open(image_tree):
    """Each tensor of a worker is an open file while it lives, and 1024 of them are a usual limit."""
    how = Preprocessing(size=16, crop_pct=1.0, interpolation="bicubic")
    images = index_folder(image_tree / "val")
    batches = eval_batches(
        EvalDataset(images, how).read, len(images),
        EvalBatchTransform(how, device="cpu", channels_last=True),
        batch_size=1, rank=0, world_size=1, device=torch.device("cpu"), workers=1,
    )  # fmt: skip
    evaluator, files = PredictionEvaluator(), []
    for batch in batches:
        evaluator.update(lambda image: image.flatten(1)[:, :5], batch)
        files.append(len(os.listdir("/proc/self/fd")))
    assert len(files) == 25
    assert max(files[5:]) < files[4] + 10  # 40 more where index and target are kept


def rows(target, predicted, confidence):
    target, predicted = torch.tensor(target), torch.tensor(predicted)
    confidence = torch.tensor(confidence, dtype=torch.float64)
    hits = (predicted == target)[:, None]
    return Predictions(target, predicted[:, None], confidence, confidence, hits, confidence[:, None].float())


IMAGES = rows([0, 0, 0, 2, 2, 2, 2, 4], [0, 2, 2, 2, 0, 1, 1, 4], [0.9, 0.5, 0.7, 0.4, 0.95, 0.3, 0.7, 1.0])


def test_confusions_and_classes_by_hand():
    assert confusions(IMAGES) == [Confusion(0, 2, 2), Confusion(2, 1, 2), Confusion(2, 0, 1)]
    first, second, third = class_rows(IMAGES)
    assert (first.label, first.n, first.top1, first.top5, first.predicted_as, first.predicted_as_count) == (
        0,
        3,
        1,
        1,
        2,
        2,
    )
    assert first.confidence == pytest.approx(0.7)
    assert (second.label, second.n, second.top1, second.predicted_as, second.predicted_as_count) == (2, 4, 1, 1, 2)
    assert (third.label, third.n, third.top1, third.predicted_as, third.predicted_as_count) == (4, 1, 1, None, 0)
    assert worst_mistakes(IMAGES, 3) == [4, 2, 6]
    assert worst_mistakes(rows([1], [1], [0.5]), 3) == []


def test_calibration_error_by_hand():
    """Two bins: 3 images of confidence up to 0.5, 1 of them correct; 5 above, 2 of them correct."""
    found = calibration(IMAGES, bins=2)
    assert found.counts == [3, 5]
    assert found.accuracy == pytest.approx([1 / 3, 2 / 5])
    assert found.confidence == pytest.approx([1.2 / 3, 4.25 / 5])
    assert found.ece == pytest.approx(100 * (abs(1 - 1.2) + abs(2 - 4.25)) / 8)
    perfect = calibration(rows([0] * 4, [0] * 4, [1.0] * 4))
    assert (perfect.ece, perfect.counts[-1]) == (0, 4)
    assert math.isnan(perfect.accuracy[0])
    assert math.isnan(calibration(rows([0, 0], [0, 0], [1.0, math.nan])).ece)


def test_readable_names():
    assert readable_names(["0", "nine"]) == ["0", "nine"]
    assert readable_names([os.fsdecode(b"caf\xe9"), "n01440764"]) == [r"caf\udce9", "tench"]
    assert readable_names(["n01440764", "n99999999", "x"]) == ["tench", "n99999999", "x"]
    classes = imagenet_classes()
    names = readable_names(classes)
    assert classes == sorted(classes)
    assert len(classes) == len(set(names)) == 1000
    assert names[134] == "crane (n02012849)"
    assert len(imagenet_classes("a")) == len(imagenet_classes("r")) == 200
    assert set(imagenet_classes("a")) < set(classes)
    assert known_classes(None, 1000) == classes
    assert (known_classes(None, 10), known_classes(["a"], 1000)) == (None, ["a"])


def test_numbers_are_sorted_by_value_and_names_as_text():
    assert in_order_of_number(["10", "2", "1"]) == ["1", "2", "10"]
    assert in_order_of_number(["10", "2", "b"]) == ["10", "2", "b"]
