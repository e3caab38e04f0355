"""The image sizes that a network takes: many are built for one, some take only multiples of their windows."""

from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.func import functional_call

from ddfnet.data.preprocessing import height_width, size_text
from ddfnet.models.factory import create_model

Size = int | tuple[int, int]

SEARCH = 64  # pixels up and down, in which sizes that work are looked for
STEPS = (8, 14)  # patches, strides and windows are multiples of these, mostly
STEPS_OF_BOTH = (8, 14, 16, 32)


def size_argument(name: str, kwargs: dict[str, Any], size: Size) -> dict[str, Any]:
    """`{"img_size": size}` for a model that is built for one image size, if this is another; `{}` for all others.

    timm's rule: those whose record says `fixed_input_size`, unless their arguments let them take any size.
    """
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag; creating the model says so, as it does of an unknown name
        cfg = None
    takes_any = kwargs.get("dynamic_img_size") or not kwargs.get("strict_img_size", True)
    if cfg is None or not cfg.fixed_input_size or takes_any:
        return {}
    built_for = kwargs.get("img_size", cfg.input_size[1:])
    built_for = (built_for, built_for) if isinstance(built_for, int) else tuple(built_for)
    if built_for == height_width(size):
        return {}
    return {"img_size": size if isinstance(size, int) else list(size)}  # a list, as JSON has it


def create_for_size(
    name: str, kwargs: dict[str, Any], *, size: Size, train_size: Size | None = None, **rates: Any
) -> nn.Module:
    """`create_model` for images of a size, which are tried where the size or the arguments are not the model's own.

    Args:
        name: see `create_model`.
        kwargs: arguments that describe the network, `img_size` among them where `size_argument` says so.
        size: side of the images in evaluation, or height and width, pixels.
        train_size: of those in training; None where there is no training.
        **rates: further arguments: classes, dropout.

    Raises:
        ValueError: there is no such model or it does not take its arguments; or not images of these sizes, with the
            nearest ones that it takes; or it returns more than the logits in training.
    """
    built_for_one = "img_size" in kwargs
    try:
        network = create_model(name, **{**kwargs, **rates})
        cfg = vars(network)["pretrained_cfg"]
    except (AssertionError, RuntimeError) as error:  # of a constructor that sizes do not suit
        if not built_for_one:
            raise
        raise ValueError(_refusal(name, kwargs, size, _reason(error))) from None
    if train_size in (None, size) and not kwargs and tuple(cfg["input_size"][1:]) == height_width(size):
        return network
    for side, training in ((size, False), (train_size, True)):
        fault = None if side is None else _fault(name, network, side, kwargs.get("in_chans", 3), training=training)
        if fault is None or side is None:
            continue
        if training and side == size:
            raise ValueError(f"{name} cannot be trained with these arguments: {fault}")
        if training and built_for_one:
            raise ValueError(
                f"{name} is built for one image size: it cannot train at {size_text(side)} and evaluate at "
                f"{size_text(size)}"
            )
        raise ValueError(_refusal(name, kwargs, side, fault))
    return network


def unseen_border(network: nn.Module, size: Size) -> str:
    """A note where an image is no whole number of a network's patches: it cuts the rest off; "" elsewhere."""
    embedding = getattr(network, "patch_embed", None)
    if not isinstance(embedding, PatchEmbed) or embedding.dynamic_img_pad or not embedding.strict_img_size:
        return ""  # others pad, or refuse
    shape = height_width(size)
    seen = tuple(side // patch * patch for side, patch in zip(shape, embedding.patch_size, strict=True))
    if seen == shape:
        return ""
    patches, seen_pixels, pixels = (" x ".join(map(str, pair)) for pair in (embedding.patch_size, seen, shape))
    above = tuple(-(-side // patch) * patch for side, patch in zip(shape, embedding.patch_size, strict=True))
    near = [pair[0] if isinstance(size, int) and pair[0] == pair[1] else pair for pair in (seen, above) if min(pair)]
    fits = f"{'sizes are' if len(near) > 1 else 'size is'} {' and '.join(map(size_text, near))}"
    return (
        f"note: patches of {patches} pixels see {seen_pixels} of {pixels}: the last rows and columns are cut off; the "
        f"nearest whole {fits}"
    )


def _refusal(name: str, kwargs: dict[str, Any], size: Size, reason: str) -> str:
    near = [side for side in (_first(name, kwargs, size, -1), _first(name, kwargs, size, 1)) if side is not None]
    takes = f"the nearest sizes that it takes are {' and '.join(map(size_text, near))}; " if near else ""
    height, width = height_width(size)
    own = get_pretrained_cfg(name)
    made_for = f"it is made for {own.input_size[-1]}" if own else ""
    return f"{name} takes no images of {height} x {width} pixels ({reason}): {takes}{made_for}"


def _first(name: str, kwargs: dict[str, Any], size: Size, sign: int) -> Size | None:
    """The first size below or above that the network takes; of one that is not square both sides move, each to the next
    multiple."""
    rest = {key: value for key, value in kwargs.items() if key != "img_size"}
    sides: list[Size] = []
    if isinstance(size, int):
        sides += [
            size + sign * by for by in range(1, SEARCH + 1) if not all((size + sign * by) % step for step in STEPS)
        ]
    else:
        for step in STEPS_OF_BOTH:
            height, width = (side // step * step if sign < 0 else -(-side // step) * step for side in size)
            sides += [(height, width)] if (height, width) != size else []
    for side in sides:
        if min(height_width(side)) < 1:
            continue
        try:
            network = create_model(name, **rest, **size_argument(name, rest, side))
            if _fault(name, network, side, rest.get("in_chans", 3), training=False) is None:
                return side
        except (AssertionError, RuntimeError, ValueError):
            continue
    return None


@torch.no_grad()
def _fault(name: str, network: nn.Module, side: Size, channels: int, *, training: bool) -> str | None:
    """Why a network fails on two blank images of a size, or None; it and the random numbers stay as they are.

    ValueError where no size would do.
    """
    was_training = network.training
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}  # running statistics among them
    try:
        with torch.random.fork_rng(devices=[]):
            out = functional_call(network.train(training), buffers, (torch.zeros(2, channels, *height_width(side)),))
    except Exception as error:  # asserts of models, shapes of PyTorch, errors of their own
        return _reason(error)
    finally:
        network.train(was_training)
    if not isinstance(out, Tensor):  # at every size
        when = "in training " if training else ""
        raise ValueError(
            f"{name} cannot be used with these arguments: {when}it returns {len(out)} outputs instead of the logits"
        )
    return None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
