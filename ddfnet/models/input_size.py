"""The image sizes that a network takes: many are built for one, some take only multiples."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddfnet.models.factory import create_model

SEARCH = 64  # pixels up and down, in which sizes that work are looked for


def size_argument(name: str, kwargs: dict[str, Any], size: int) -> dict[str, Any]:
    """`{"img_size": size}` for a model that is built for one image size, if this is another; `{}` for all others.

    timm's rule: those whose record says `fixed_input_size`, unless their arguments let them take any size.
    """
    with torch.device("meta"):
        cfg = vars(create_model(name, **kwargs))["pretrained_cfg"]
    takes_any = kwargs.get("dynamic_img_size") or not kwargs.get("strict_img_size", True)
    if not cfg.get("fixed_input_size") or takes_any:
        return {}
    built_for = kwargs.get("img_size", cfg["input_size"][1:])
    built_for = (built_for, built_for) if isinstance(built_for, int) else tuple(built_for)
    return {} if built_for == (size, size) else {"img_size": size}


def check_sizes(name: str, kwargs: dict[str, Any], *, size: int, train_size: int | None = None) -> None:
    """Raises ValueError where a network cannot take images of these sizes, with the nearest ones that it takes, or
    returns more than the logits in training. A pass without memory or values shows it.

    Args:
        name, kwargs: for `create_model`, without `img_size` for the model's own rule.
        size: side of the images in evaluation, pixels, for which a model of one size is built.
        train_size: of those in training, if it is another.
    """
    for side, training in ((size, False), (train_size or size, True)):
        reason = _fault(name, kwargs, built_for=size, side=side, training=training)
        if reason is None:
            continue
        if side != size and _fault(name, kwargs, built_for=side, side=side, training=True) is None:
            raise ValueError(
                f"{name} is built for one image size, {size}: training at {side} beside it is not possible"
            )
        if side == size and training:
            raise ValueError(f"{name} cannot be trained as it is: {reason}")
        near = [s for s in (_first(name, kwargs, side, -1), _first(name, kwargs, side, 1)) if s is not None]
        with torch.device("meta"):
            own = vars(create_model(name))["pretrained_cfg"]["input_size"][-1]
        takes = " and ".join(f"{s}" for s in near)
        raise ValueError(
            f"{name} takes no images of {side} x {side} pixels ({reason}): "
            + (f"the nearest sizes that it takes are {takes}; " if near else "")
            + f"it is made for {own}"
        )


def _first(name: str, kwargs: dict[str, Any], side: int, sign: int) -> int | None:
    sizes = (side + sign * step for step in range(1, SEARCH + 1))
    tries = (s for s in sizes if s > 0 and _fault(name, kwargs, built_for=s, side=s, devices=("meta",)) is None)
    return next(tries, None)


def _fault(
    name: str,
    kwargs: dict[str, Any],
    *,
    built_for: int,
    side: int,
    training: bool = False,
    devices: Sequence[str] = ("meta", "cpu"),
) -> str | None:
    """Why a network built for images of one size fails on those of another, or None.

    On the device `meta`, which computes shapes alone. Where that is not enough (a network that reads values, say), the
    pass is made on the CPU.
    """
    reason = None
    for device in devices:
        try:
            with torch.device(device):
                model = create_model(name, **kwargs, **size_argument(name, kwargs, built_for)).train(training)
                with torch.no_grad():
                    out = model(torch.zeros(2, 3, side, side))
        except Exception as error:  # asserts of models, shapes of PyTorch, errors of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        if not isinstance(out, Tensor):
            return f"in training it returns {len(out)} outputs instead of the logits"
        return None
    return reason
