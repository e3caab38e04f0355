"""Memory for the images of a batch."""

import torch


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Uninitialized memory for the images of a batch."""
    return torch.empty(shape, dtype=dtype)
