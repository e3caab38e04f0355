"""Classification data: class folders in, batches on the device out. Takes plain arguments, never a configuration."""

from ddfnet.data.dataset import EvalDataset, TrainDataset, open_rgb
from ddfnet.data.device import EvalBatchTransform, TrainBatchTransform
from ddfnet.data.digits import render_digits
from ddfnet.data.folder import FolderIndex, index_folder
from ddfnet.data.loader import eval_batches, train_batches
from ddfnet.data.sampler import TrainSampler, epoch_order, eval_indices, permutation, steps_per_epoch
from ddfnet.data.transforms import INTERPOLATIONS, Preprocessing, eval_transform, train_transform

__all__ = [
    "INTERPOLATIONS",
    "EvalBatchTransform",
    "EvalDataset",
    "FolderIndex",
    "Preprocessing",
    "TrainBatchTransform",
    "TrainDataset",
    "TrainSampler",
    "epoch_order",
    "eval_batches",
    "eval_indices",
    "eval_transform",
    "index_folder",
    "open_rgb",
    "permutation",
    "render_digits",
    "steps_per_epoch",
    "train_batches",
    "train_transform",
]
