"""Checks of the layers' arguments, and how the layers describe themselves."""

from collections.abc import Sequence

from torch import Tensor, nn


def check_int(name: str, value: int) -> None:
    """Raises TypeError unless this is an int."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, expected an int")


def check_at_least(name: str, value: int, least: int = 1) -> None:
    """Raises ValueError for a smaller value."""
    if value < least:
        raise ValueError(f"{name}: got {value}, expected at least {least}")


def check_odd(name: str, value: int) -> None:
    """Raises ValueError unless a convolution of this size keeps the size of a map."""
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{name}: got {value}, expected an odd number")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        *first, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, got {value!r}")


def check_scale(scale: int) -> None:
    """Raises TypeError or ValueError unless this is an upscale factor: a whole number, at least 2."""
    check_int("scale", scale)
    check_at_least("scale", scale, 2)


def check_kernel_size(kernel_size: int) -> None:
    """Raises TypeError or ValueError unless such filters can be normalized: one tap has no standard deviation."""
    check_int("kernel_size", kernel_size)
    if kernel_size < 3 or kernel_size % 2 == 0:
        # DDF(64, 128), written as a convolution is: the second number was meant to be channels.
        hint = "; the number of output channels is not given, it is that of the input" if kernel_size >= 32 else ""
        raise ValueError(f"kernel_size must be odd and at least 3, got {kernel_size}{hint}")


def check_divides(name: str, value: int, channels: int) -> None:
    """Raises ValueError unless this number (of heads, groups, ...) divides the channels."""
    if value < 1 or channels % value:
        advice = f"give a divisor of {channels}"
        raise ValueError(f"{name} must divide the channels: got {value} for {channels} channels; {advice}")


def check_reduction(reduction: int, channels: int) -> None:
    """Raises ValueError unless channels // reduction hidden channels are at least one, and no more than channels."""
    if not 1 <= reduction <= channels:
        raise ValueError(f"reduction={reduction} leaves no hidden channel of {channels}: give from 1 to {channels}")


def check_input(x: Tensor, channels: int) -> None:
    """Raises ValueError unless x is (B, channels, H, W), and TypeError unless it is of a floating dtype."""
    if not x.is_floating_point():
        raise TypeError(f"x: got dtype {x.dtype}, expected a floating one; convert images with .float()")
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, {channels}, H, W)")


def describe(layer: nn.Module, *names: str) -> str:
    """`extra_repr` of a layer: its channels, then these attributes by name."""
    return ", ".join([str(layer.channels), *(f"{name}={getattr(layer, name)!r}" for name in names)])
