"""A depth network and its held-out pairs from a checkpoint, for the commands that draw."""

from collections.abc import Sequence
from pathlib import Path

from ddfnet.checkpoint import read_weights
from ddfnet.models.weights import load_weights
from ddfnet.tasks.depth.config import DepthConfig
from ddfnet.tasks.depth.data import DepthReader
from ddfnet.tasks.depth.network import DDFUpNet
from ddfnet.tasks.depth.pairs import open_pairs
from ddfnet.tasks.evaluation import EvaluationOptions, stored_config
from ddfnet.utils.errors import CheckpointError, UserError


def load_depth(checkpoint: Path, *, data: Path | None = None) -> tuple[DDFUpNet, DepthReader]:
    """The network, in evaluation mode on the CPU, and its validation set. UserError where the checkpoint is of no depth
    run or the data cannot be read. `data`: `data.root`, where it is not that of training."""
    weights = read_weights(checkpoint)
    meta = weights.meta or {}
    if meta.get("task") != "depth":
        raise CheckpointError(f"{checkpoint} is of the task {meta.get('task', 'unknown')}: give a checkpoint of depth")
    config = stored_config(DepthConfig, checkpoint, weights, EvaluationOptions(data=data))
    network = DDFUpNet(**meta["model"]["kwargs"]).eval()
    load_weights(network, weights, source=checkpoint, name="ddf_up_net")
    return network, DepthReader(open_pairs(config.data, "val"), config.data)


def check_indices(indices: Sequence[int], reader: DepthReader, *, option: str = "") -> None:
    """UserError for a number that no pair has; `option` is what the user calls it."""
    for index in indices:
        if not 0 <= index < len(reader.pairs):
            raise UserError(f"{option}{index}: the validation set has the pairs 0 to {len(reader.pairs) - 1}")
