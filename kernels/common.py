"""Steps that the kernels of the DDF operator share."""

import triton
import triton.language as tl


@triton.jit
def load(pointer, mask, ACC: tl.constexpr):
    """The values at `pointer`, 0 where masked, in the dtype of the sums.

    A bfloat16 is the upper half of a float32. Saying so costs one instruction an element, where the conversion of the
    compiler costs one and a half (SASS of sm_90).
    """
    value = tl.load(pointer, mask=mask, other=0.0)
    if value.dtype == tl.bfloat16 and ACC == tl.float32:
        return (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return value.to(ACC)


@triton.jit
def multiply_accumulate(acc, value, f, s, MULTIPLY: tl.constexpr, HAS_CHANNEL: tl.constexpr, HAS_SPATIAL: tl.constexpr):
    """acc + value * (f combined with s), pixels x channels; f (channels) or s (pixels) may be absent.

    The fused multiply-add is spelled out, because Triton's default for fusing the two changes with its version.
    """
    if HAS_CHANNEL and HAS_SPATIAL:
        if MULTIPLY:
            return tl.fma(value * s[:, None], f[None, :], acc)
        else:
            return tl.fma(value, s[:, None] + f[None, :], acc)
    elif HAS_CHANNEL:
        return tl.fma(value, tl.broadcast_to(f[None, :], value.shape), acc)
    else:
        return tl.fma(value, tl.broadcast_to(s[:, None], value.shape), acc)


@triton.jit
def replace(items, INDEX: tl.constexpr, item):
    """The tuple `items` with one item replaced; tuples of tiles are how a program holds several accumulators."""
    return items[:INDEX] + (item,) + items[INDEX + 1 :]
