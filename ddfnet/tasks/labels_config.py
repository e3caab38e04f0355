"""The keys of `data` that say which labels images have, and how often each class is shown."""

from typing import Literal

from ddfnet.config import Section


class LabelConfig(Section):
    """Part of the section `data` of classification."""

    sampler: Literal["uniform", "balanced"] = "uniform"
    """Which images an epoch shows. uniform: each once. balanced: as many, all classes equally often: images of small
    classes several times, each time augmented anew, and some of those of large ones."""
