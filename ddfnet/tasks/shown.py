"""Images of a classification run with captions, for people: a training batch, and the worst mistakes."""

from collections.abc import Sequence

from torch import Tensor

from ddfnet.data.batches import Batch
from ddfnet.data.preprocessing import Preprocessing

_LEAST = 0.05  # of a mixed or smoothed target to be named
_MOST_NAMES = 2


def shown_images(
    batch: Batch, preprocessing: Preprocessing, classes: Sequence[str], most: int
) -> list[tuple[Tensor, str]]:
    """The first images of a batch, no longer normalized and without alpha: (3, H, W) in [0, 1], and their classes; of
    `worst_labels` what they were taken for."""
    images = batch["image"][:most].float()
    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    images = (images * std + mean).clamp(0, 1).cpu()
    images = images[:, :3] if images.shape[1] > 2 else images[:, :1].expand(-1, 3, -1, -1)
    captions = [_named(row, classes) for row in batch["target"][: len(images)].cpu()]
    if "predicted" in batch:
        pairs = zip(batch["predicted"].tolist(), batch["score"].tolist(), strict=True)
        answers = [f"{_name(label, classes)} {score:.2f}" for label, score in pairs]
        if batch["target"].ndim > 1:  # of many labels the one that is wrong
            wrong = batch["target"].gather(1, batch["predicted"][:, None])[:, 0] > 0.5
            captions = [f"{'missed' if m else 'not'}: {a}" for m, a in zip(wrong.tolist(), answers, strict=False)]
        else:
            captions = [f"{truth} as {answer}" for truth, answer in zip(captions, answers, strict=False)]
    return list(zip(images, captions, strict=False))


def worst_labels(output: Tensor, batch: Batch) -> Batch:
    """Of each image of a validation batch the label that is wrong, without a host sync.

    Args:
        output: logits (B, outputs).
        batch: image (B, 3, H, W); target: labels (B,), or (B, classes) in {0, 1} of images with any number of classes.

    Returns:
        image, target, predicted (B,) int64 and score (B,): how sure the network is of the wrong label, 0 where it is
        right. With any number of classes: how far off the probability of the worst label is, where it is above 0.5.
    """
    logits, target = output.detach().float(), batch["target"]
    if target.ndim == 1:
        score, predicted = logits.softmax(1).max(1)
        score = score * (predicted != target)
    else:
        score, predicted = (logits[:, : target.shape[1]].sigmoid() - target).abs().max(1)
        score = score * (score > 0.5)
    return {"image": batch["image"], "target": target, "predicted": predicted, "score": score}


def _named(target: Tensor, classes: Sequence[str]) -> str:
    if target.ndim == 0:
        return _name(int(target), classes)
    values, labels = target.sort(descending=True)
    parts = [(v, i) for v, i in zip(values.tolist(), labels.tolist(), strict=True) if v >= _LEAST][:_MOST_NAMES]
    if len(parts) == 1:
        return _name(parts[0][1], classes)
    return " ".join(f"{_name(label, classes)} {value:.2f}" for value, label in parts)


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)
