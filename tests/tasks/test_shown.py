"""Images with captions for people: batches and mistakes."""

import pytest
import torch

from ddfnet.data.preprocessing import Preprocessing
from ddfnet.tasks.shown import shown_images, worst_labels

CLASSES = ["ant", "bee", "cow"]
PREPROCESSING = Preprocessing(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


def test_images_are_what_they_were_before_normalization():
    pixels = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    batch = {"image": (pixels - mean) / std, "target": torch.tensor([2, 0, 1])}
    shown = shown_images(batch, PREPROCESSING, CLASSES, 2)
    torch.testing.assert_close(torch.stack([image for image, _ in shown]), pixels[:2])
    assert [caption for _, caption in shown] == ["cow", "ant"]


def test_mixed_targets_name_their_parts():
    target = torch.tensor([[0.68, 0.32, 0.0], [0.033, 0.933, 0.033]])
    batch = {"image": torch.zeros(2, 3, 4, 4), "target": target}
    assert [text for _, text in shown_images(batch, PREPROCESSING, CLASSES, 9)] == ["ant 0.68 bee 0.32", "bee"]


def test_mistakes_have_the_confidence_in_the_wrong_class():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]))
    rows = worst_labels(logits, {"image": torch.zeros(3, 3, 4, 4), "target": torch.tensor([1, 1, 0])})
    torch.testing.assert_close(rows["score"], torch.tensor([0.7, 0.0, 0.5]))
    assert rows["predicted"].tolist() == [0, 1, 2]
    texts = [text for _, text in shown_images(rows, PREPROCESSING, CLASSES, 9)]
    assert texts == ["bee as ant 0.70", "bee as bee 0.00", "ant as cow 0.50"]


def test_of_many_labels_the_worst_is_named():
    logits = torch.logit(torch.tensor([[0.9, 0.2, 0.4], [0.6, 0.4, 0.1], [0.6, 0.4, 0.1]]))
    target = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    rows = worst_labels(logits, {"image": torch.zeros(3, 3, 4, 4), "target": target})
    torch.testing.assert_close(rows["score"], torch.tensor([0.9, 0.9, 0.0]))
    texts = [text for _, text in shown_images(rows, PREPROCESSING, CLASSES, 9)]
    assert texts[:2] == ["not: ant 0.90", "missed: cow 0.90"]


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels_are_shown_without_alpha(channels):
    how = Preprocessing(size=4, mean=(0.5, 0.25, 0.1, 0.2)[:channels], std=(0.5, 0.25, 1.0, 0.3)[:channels])
    pixels = torch.rand(2, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (how.mean, how.std))
    batch = {"image": (pixels - mean) / std, "target": torch.tensor([2, 0])}
    shown = torch.stack([image for image, _ in shown_images(batch, how, CLASSES, 2)])
    seen = pixels[:, :3] if channels > 2 else pixels[:, [0, 0, 0]]
    torch.testing.assert_close(shown, seen)
