"""Layers that take the place of a convolution, called as `nn.Conv2d` is: what to write instead."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ddfnet.utils.errors import did_you_mean

F = TypeVar("F", bound=Callable[..., None])

_ORDER = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
# Arguments of nn.Conv2d that a layer in its place has no use for.
_LEFT_OUT = {
    "padding": "it is implied, dilation * (kernel_size // 2)",
    "padding_mode": "the padding is always with zeros",
    "groups": "each channel is filtered by itself, as by a depthwise convolution",
    "bias": "there is none; a normalization layer behind it adds one",
    "in_channels": "`channels` is the number of both input and output channels",
    "out_channels": "`channels` is the number of both input and output channels",
}


def explains_arguments(init: F) -> F:
    """Decorates the `__init__` of such a layer: arguments that it does not have raise a TypeError that names all of
    them, those of nn.Conv2d with the reason, others with the nearest of its own. The signature stays what it is."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: Any, *positional: Any, **named: Any) -> None:
        try:
            signature.bind(self, *positional, **named)
        except TypeError as error:
            own = list(signature.parameters)[1:]
            text = _explanation(type(self).__name__, own, positional, named) or f"{type(self).__name__}(): {error}"
            raise TypeError(text) from None
        init(self, *positional, **named)

    return cast(F, checked)


def _explanation(layer: str, own: list[str], positional: tuple[Any, ...], named: dict[str, Any]) -> str:
    """All that is wrong with these arguments; "" where they are only too few."""
    pair = len(positional) == 2 and "kernel_size" in named
    if len(positional) <= 2 and not pair and not ("in_channels" in named and "channels" not in named):
        faults = [f"'{name}': {_fix(name, own)}" for name in named if name not in own]
        return f"{layer}() got an unexpected keyword argument {'; '.join(faults)}" if faults else ""
    given = {**dict(zip(_ORDER, positional, strict=False)), **named}
    inputs, outputs = given.pop("in_channels", None), given.pop("out_channels", None)
    faults = [f"{layer} takes `channels` and `kernel_size` by position, all else by name"]
    if outputs not in (None, inputs):
        channels = f"{inputs} to {outputs} channels"
        faults.append(f"it has as many output as input channels: put a 1x1 convolution of {channels} behind it")
    faults += [f"{name}: {_fix(name, own)}" for name in given if name not in own]
    kernel = [repr(given.pop("kernel_size"))] if "kernel_size" in given else []
    others = [f"{name}={value!r}" for name, value in given.items() if name in own]
    return f"{'; '.join(faults)}. Write {layer}({', '.join([repr(inputs), *kernel, *others])})"


def _fix(name: str, own: list[str]) -> str:
    reason = _LEFT_OUT.get(name)
    return f"leave it out: {reason}" if reason else did_you_mean(name, own, otherwise=f"it has {', '.join(own)}")
