"""Mixed precision by name."""

import torch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of `fp32` (off), `bf16` or `fp16` on a device."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")
