"""The parts that a policy is made of: each draws its operations for a whole batch from uniform draws.

The recipes are timm's own: its parser reads the strings, its objects hold the operations, and only the draws are made
here, for all images at once and with the same distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
import torch

from ddfnet.data.policy.levels import MAX_LEVEL, LevelTable
from ddfnet.data.policy.table import BICUBIC, BILINEAR, CODE, INTERPOLATION, VALUE, Op, PolicyTable, table_of

_CHOICE, _APPLY, _RADIUS, _ANGLE, _VALUE, _INTERPOLATION = range(6)  # the draws of a layer
_DRAWS = 6
_JITTERS = np.array(list(permutations([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR])), np.float64)


def _pick(u: np.ndarray, n: int) -> np.ndarray:
    """Uniform draws in [0, 1) -> integers in [0, n); the last draw below 1 times n rounds up to n."""
    return np.minimum((u * n).astype(np.intp), n - 1)


@dataclass(frozen=True, eq=False)
class TimmOps:
    """Operations of a timm recipe, K of them.

    Attributes:
        names: timm's names.
        prob, magnitude, std, upper: float64 (K,): with which probability each acts, and the normal distribution of its
            level, cut off at 0 and `upper`. Infinite `std`: uniform up to `magnitude`.
        size: height and width of the images, pixels.
        interpolation: Pillow's number; None: bilinear or bicubic, drawn for each operation.
    """

    names: tuple[str, ...]
    prob: np.ndarray
    magnitude: np.ndarray
    std: np.ndarray
    upper: np.ndarray
    size: tuple[int, int]
    interpolation: int | None

    @classmethod
    def of(cls, ops: Sequence[Any], size: tuple[int, int], interpolation: int | None) -> "TimmOps":
        """Of timm's `AugmentOp` objects."""
        return cls(
            tuple(op.name for op in ops),
            np.array([op.prob for op in ops], np.float64),
            np.array([op.magnitude for op in ops], np.float64),
            np.array([op.magnitude_std for op in ops], np.float64),
            np.array([op.magnitude_max or MAX_LEVEL for op in ops], np.float64),
            size,
            interpolation,
        )

    @cached_property
    def levels(self) -> LevelTable:
        return LevelTable(self.names)

    def draw(self, chosen: np.ndarray, u: np.ndarray) -> PolicyTable:
        """The table, float32 (B, L, 3), of chosen operations, int (B, L), for uniform draws (B, L, 6)."""
        level = np.minimum(np.maximum(self._strengths(chosen, u), 0.0), self.upper[chosen])
        codes, values = self.levels.codes(chosen), self.levels.values(chosen, level, u[..., _VALUE])
        acts = u[..., _APPLY] < self.prob[chosen]
        height, width = self.size
        # What a translation is a share of.
        side = np.where(codes == Op.TRANSLATE_X, width, np.where(codes == Op.TRANSLATE_Y, height, 1))
        table = np.zeros((*chosen.shape, 3), np.float32)
        table[..., CODE] = codes * acts
        table[..., VALUE] = values * side * acts
        interpolation: np.ndarray | int = self.interpolation or 0
        if self.interpolation is None:
            interpolation = np.where(u[..., _INTERPOLATION] < 0.5, BILINEAR, BICUBIC)
        table[..., INTERPOLATION] = interpolation * (acts & (codes >= Op.ROTATE))
        return table

    def _strengths(self, chosen: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Levels before they are cut off. Box and Muller: two uniform draws make a normal one."""
        magnitude, std = self.magnitude[chosen], self.std[chosen]
        radius = np.sqrt(-2.0 * np.log1p(-u[..., _RADIUS]))
        normal = radius * np.cos(2.0 * np.pi * u[..., _ANGLE])
        uniform = np.isinf(std)
        if not uniform.any():
            return magnitude + std * normal
        return np.where(uniform, magnitude * u[..., _RADIUS], magnitude + np.where(uniform, 0.0, std) * normal)


@dataclass(frozen=True, eq=False)
class RandAugment:
    """Operations chosen anew for each layer (arXiv 1909.13719); with weights, none of them twice."""

    ops: TimmOps
    layers: int
    weights: np.ndarray | None

    def __post_init__(self) -> None:
        if self.weights is not None and self.layers > len(self.weights):
            raise ValueError(f"it draws {self.layers} of {len(self.weights)} operations, and none of them twice")

    @property
    def count(self) -> int:
        return _DRAWS * self.layers

    def draw(self, u: np.ndarray) -> PolicyTable:
        u = u.reshape(len(u), self.layers, _DRAWS)
        if self.weights is None:
            return self.ops.draw(_pick(u[..., _CHOICE], len(self.ops.names)), u)
        left, chosen = np.tile(self.weights, (len(u), 1)), np.empty((len(u), self.layers), np.intp)
        for layer in range(self.layers):
            sums = left.cumsum(1)
            # Operations that are gone add nothing to the sums, so no draw falls on them.
            past = sums <= u[:, layer, _CHOICE, None] * sums[:, -1:]
            chosen[:, layer] = past.sum(1).clip(max=len(self.ops.names) - 1)
            left[np.arange(len(u)), chosen[:, layer]] = 0.0
        return self.ops.draw(chosen, u)


@dataclass(frozen=True, eq=False)
class SubPolicies:
    """One of several sequences of operations (AutoAugment, arXiv 1805.09501; 3-Augment, arXiv 2204.07118).

    Attributes:
        sequences: int (S, layers), numbers of operations.
    """

    ops: TimmOps
    sequences: np.ndarray

    @property
    def layers(self) -> int:
        return self.sequences.shape[1]

    @property
    def count(self) -> int:
        return _DRAWS * self.layers

    def draw(self, u: np.ndarray) -> PolicyTable:
        u = u.reshape(len(u), self.layers, _DRAWS)
        chosen = self.sequences[_pick(u[:, 0, _CHOICE], len(self.sequences))]
        return self.ops.draw(chosen, u)


@dataclass(frozen=True)
class TrivialAugment:
    """One operation of uniformly drawn strength (TrivialAugment, wide: arXiv 2103.10158)."""

    layers = 1
    count = 3

    def draw(self, u: np.ndarray) -> PolicyTable:
        op, strength, sign = u.T
        chosen = _pick(op, len(_TRIVIAL))
        codes, values = _TRIVIAL_CODES[chosen], _TRIVIAL_VALUES[chosen, _pick(strength, _TRIVIAL_BINS)]
        values = np.where(np.isin(codes, _TRIVIAL_SIGNED) & (sign < 0.5), -values, values)
        values = values + np.isin(codes, _TRIVIAL_FACTORS)
        return table_of(codes, values, np.where(codes >= Op.ROTATE, BILINEAR, 0))[:, None]


_TRIVIAL_BINS = 31
_TRIVIAL_FACTORS = (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS)
_TRIVIAL_SIGNED = (*_TRIVIAL_FACTORS, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE)


def _trivial_values() -> dict[Op, np.ndarray]:
    def up_to(start: float, end: float) -> np.ndarray:
        return torch.linspace(start, end, _TRIVIAL_BINS).double().numpy()  # as torchvision computes them

    return {
        Op.IDENTITY: np.zeros(_TRIVIAL_BINS),
        Op.SHEAR_X: up_to(0, 0.99),
        Op.SHEAR_Y: up_to(0, 0.99),
        Op.TRANSLATE_X: np.trunc(up_to(0, 32)),
        Op.TRANSLATE_Y: np.trunc(up_to(0, 32)),
        Op.ROTATE: up_to(0, 135),
        Op.BRIGHTNESS: up_to(0, 0.99),
        Op.COLOR: up_to(0, 0.99),
        Op.CONTRAST: up_to(0, 0.99),
        Op.SHARPNESS: up_to(0, 0.99),
        Op.POSTERIZE: 8 - np.round(np.arange(_TRIVIAL_BINS) / ((_TRIVIAL_BINS - 1) / 6)),
        Op.SOLARIZE: up_to(255, 0),
        Op.AUTOCONTRAST: np.zeros(_TRIVIAL_BINS),
        Op.EQUALIZE: np.zeros(_TRIVIAL_BINS),
    }


_TRIVIAL = _trivial_values()
_TRIVIAL_CODES, _TRIVIAL_VALUES = np.array(list(_TRIVIAL), np.float64), np.stack(list(_TRIVIAL.values()))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation in random order, each by a factor uniform in [1 - strength, 1 + strength]."""

    strength: float
    layers = 3
    count = 4

    def draw(self, u: np.ndarray) -> PolicyTable:
        codes = _JITTERS[_pick(u[:, 0], len(_JITTERS))]
        low, high = max(0.0, 1.0 - self.strength), 1.0 + self.strength
        return table_of(codes, low + (high - low) * u[:, 1:], np.zeros_like(codes))


@dataclass(frozen=True)
class AugMix:
    """AugMix (arXiv 1912.02781) as timm applies it: only a seed for it is drawn, 48 bits of it."""

    layers = 1
    count = 2

    def draw(self, u: np.ndarray) -> PolicyTable:
        halves = np.floor(u * 2.0**24)  # float32 holds these exactly
        return table_of(np.full((len(u), 1), Op.AUGMIX), halves[:, :1], halves[:, 1:])
