"""Which checkpoints a run keeps: the section `checkpoints` of the configuration."""

from typing import Annotated

from pydantic import Field

from ddfnet.config import Positive, Section


class CheckpointsConfig(Section):
    keep: Annotated[int, Field(ge=0)] = 2
    """Earlier checkpoints to resume from that stay in `checkpoints/` of the run folder, each of another step. They are
    taken where `last.pt` is damaged or missing."""
    every_epochs: Positive | None = None
    """Epochs between two checkpoints that stay in `checkpoints/` for good. null: none."""
    max_age: Annotated[float, Field(gt=0)] | None = None
    """Minutes after which `last.pt` is written anew, besides the ends of epochs and `run.save_every`. null: never."""
    best: Positive = 1
    """Number of best checkpoints. `best.pt` is the best; with more than 1 all of them are in `checkpoints/` by step."""
    metric: str | None = None
    """Metric that ranks them: top1, top5 or loss of classification, for one. null: the task's own."""
    background: bool = True
    """Write while training continues, from a copy. false: training waits."""
