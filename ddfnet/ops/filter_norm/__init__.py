"""Filter normalization: in native code on the CPU, PyTorch's formula everywhere else."""

from ddfnet.ops.filter_norm.autograd import filter_norm, plain_filter_norm

__all__ = ["filter_norm", "plain_filter_norm"]
