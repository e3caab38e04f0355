"""A policy: the recipe of a configuration, its draws for a batch, and its application to an image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.transforms import str_to_pil_interp

from ddfnet.data.policy.pillow import apply_op, posterize
from ddfnet.data.policy.stages import AugMix, ColorJitter, RandAugment, SubPolicies, TimmOps, TrivialAugment
from ddfnet.data.policy.table import CODE, INTERPOLATION, VALUE, Op, PolicyTable
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.rng import keyed_generators

if TYPE_CHECKING:
    from ddfnet.data.augment import AugmentConfig


class Stage(Protocol):
    @property
    def layers(self) -> int:
        """Operations per image."""

    @property
    def count(self) -> int:
        """Uniform draws per image."""

    def draw(self, u: np.ndarray) -> PolicyTable:
        """float64 (B, count) in [0, 1) -> float32 (B, layers, 3)."""


@dataclass(frozen=True)
class Policy:
    """Color and affine operations on training images, drawn for whole batches.

    `draw` makes the operations of a batch from uniform draws; they are then applied by `apply`, image by image through
    Pillow, or by `apply_policy`, to the batch on its device. Both give the same pixels, but for one level.

    Attributes:
        stages: what is drawn, in the order of application.
        fill: RGB of what an affine operation leaves empty.
        augmix: timm's AugMix, where that is the recipe; it has no batched form.
    """

    stages: tuple[Stage, ...]
    fill: tuple[int, int, int]
    augmix: Any = None

    @classmethod
    def of(cls, augment: "AugmentConfig", preprocessing: Preprocessing) -> "Policy | None":
        """The policy of a recipe for crops of `preprocessing.size`, None where it has no such operations."""
        fill = fill_color(preprocessing)
        recipe, size = augment.rand_augment, preprocessing.input_size[1:]
        interpolation = None if augment.interpolation == "random" else int(str_to_pil_interp(augment.interpolation))
        stages: list[Stage] = []
        augmix = None
        if augment.trivial_augment:
            stages.append(TrivialAugment())
        elif recipe is not None and recipe.startswith("rand"):
            theirs = rand_augment_transform(recipe, {})
            ops, weights = TimmOps.of(theirs.ops, size, interpolation), theirs.choice_weights
            stages += [RandAugment(ops, theirs.num_layers, weights)] if theirs.num_layers else []
        elif recipe is not None and recipe.startswith("augmix"):
            augmix = _augmix(recipe, size, interpolation, fill)
            stages.append(AugMix())
        elif recipe is not None:
            sequences = auto_augment_transform(recipe, {}).policy
            ops = TimmOps.of([op for sequence in sequences for op in sequence], size, interpolation)
            numbers = np.arange(len(ops.names)).reshape(len(sequences), -1)
            stages.append(SubPolicies(ops, numbers))
        if augment.jitters:
            stages.append(ColorJitter(augment.color_jitter))
        return cls(tuple(stages), fill, augmix) if stages else None

    @property
    def count(self) -> int:
        """Uniform draws per image."""
        return sum(stage.count for stage in self.stages)

    def draw(self, uniforms: np.ndarray) -> PolicyTable:
        """The operations of a batch: float64 (B, count) in [0, 1) -> table float32 (B, layers, 3), see `table.py`.

        A batch carries it as "policy". It stays on the CPU: the host reads it, to know what each operation acts on.
        """
        counts = [stage.count for stage in self.stages]
        parts = np.split(uniforms[:, : self.count], np.cumsum(counts)[:-1], axis=1)
        tables = [stage.draw(u) for stage, u in zip(self.stages, parts, strict=True)]
        return tables[0] if len(tables) == 1 else np.concatenate(tables, axis=1)

    def apply(self, image: Image.Image, table: PolicyTable, row: int) -> Image.Image:
        """The operations of row `row` on an RGB image, by timm's functions and Pillow: the same pixels."""
        for entry in table[row]:
            op, value, last = Op(int(entry[CODE])), float(entry[VALUE]), int(entry[INTERPOLATION])
            if op == Op.AUGMIX:
                with keyed_generators(int(value), last):
                    image = self.augmix(image)
            else:
                image = apply_op(image, op, value, last, self.fill)
        return image


def fill_color(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """RGB of what an affine operation leaves empty: the mean color, as in timm."""
    color = preprocessing.mean_color
    return (color[0], color[1], color[2]) if len(color) == 3 else (color[0],) * 3


def _augmix(recipe: str, size: tuple[int, int], interpolation: int | None, fill: tuple) -> Any:
    params: dict[str, Any] = {"translate_const": int(min(size) * 0.45), "img_mean": fill, "translate_pct": 0.3}
    if interpolation is not None:
        params["interpolation"] = Image.Resampling(interpolation)
    transform = augment_and_mix_transform(recipe, params)
    for op in transform.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = posterize
    return transform
