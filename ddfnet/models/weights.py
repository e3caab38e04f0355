"""Fitting weights to a model, whatever layout they come in; every other way of loading ends here."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import timm
import timm.models._builder as timm_builder
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ddfnet.checkpoint import Weights, read_weights, some
from ddfnet.models.factory import create_model, list_models
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.utils.text import plural
from ddfnet.zoo.download import LOCAL, locate

TIMM = "timm:"  # before a name of `create_model`: the weights that come with it
State = dict[str, Tensor]


def read_source(source: str, *, prefer: str = "auto") -> Weights:
    """Weights from a file, `zoo:NAME`, `hf-hub:ORG/NAME`, `local-dir:FOLDER`, or `timm:MODEL.TAG`, which are those that
    `create_model(pretrained=True)` loads. UserError where they cannot be had or read."""
    if not source.startswith(TIMM):
        return read_weights(locate(source)[0], prefer=prefer)
    name = source.removeprefix(TIMM)
    try:
        model = create_model(name, pretrained=True)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None
    except (OSError, RuntimeError) as error:  # of the download, and of a model that has none
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot get the pretrained weights of {name} ({reason}): download them where there is a network, and name "
            f"the file, or its folder as {LOCAL}FOLDER, instead"
        ) from None
    return Weights(
        model.state_dict(), None, "pretrained", origin={"arch": name, "record": vars(model)["pretrained_cfg"]}
    )


def load_weights(
    model: nn.Module, weights: Weights, *, source: str | object, name: str, new_classifier: bool = False
) -> str:
    """Loads weights into a model; every parameter and buffer must be given.

    Names: a prefix that all of the network's keys have in the file (`backbone.`, `model.`, `visual.trunk.`) is
    stripped, and what stands beside it is left out; the one linear layer that is left and fits is the classifier,
    however it is called. Where names or shapes still differ, timm's own filter of the model converts them: names of
    other code bases, and position embeddings of another image size. The count of batches that batch norms have seen
    may be absent.

    Args:
        model: any module; for timm's filter and record of the classifiers it needs timm's `pretrained_cfg`.
        source, name: of file and model, for messages.
        new_classifier: classifiers of another size, or absent ones, keep their start, and the first convolution of an
            RGB network is adapted to other channels by timm's rule.

    Returns:
        What was stripped, renamed, resized, left out or stays new, in one line; nothing for weights that fit as they
        are.

    Raises:
        CheckpointError: they are those of another model, and how they differ.
    """
    own = model.state_dict()
    heads = classifier_names(model)
    state, changes = _named_as_in(model, weights.state_dict, source)
    counters = [key for key in own if key.endswith("num_batches_tracked") and key not in state]
    state.update({key: own[key] for key in counters})
    changes += [f"{len(counters)} num_batches_tracked are absent and start at 0"] if counters else []
    absent = [head for head in heads if not any(_of(head, key) for key in own) and any(_of(head, key) for key in state)]
    if absent:  # a model without its classifier
        state = _without(state, absent)
        changes.append(f"left out {', '.join(absent)}")
    if new_classifier:
        changes += _adapt_channels(model, state, own, source)
        state, new = _with_new_heads(state, own, heads)
        changes += [f"new classifier: {', '.join(new)}"] if new else []
    missing, extra, reshaped = _differences(state, own)
    if missing or extra or reshaped:
        parts = [_some(missing, "missing"), _some(extra, "unknown"), _some(reshaped, "of another shape")]
        raise CheckpointError(
            f"{source} does not hold weights of {name}: {'; '.join(filter(None, parts))}. "
            "Name the model that it is of: model.name in a configuration, --model of a command"
        )
    for key, tensor in state.items():
        if own[key].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(
                f"{source} holds {str(tensor.dtype).removeprefix('torch.')} in {key}, which are no weights of {name}: "
                "take the file of before quantization"
            )
    types = {
        tensor.dtype for key, tensor in state.items() if own[key].is_floating_point() and tensor.dtype != own[key].dtype
    }
    changes += [f"converted from {', '.join(sorted(str(t).removeprefix('torch.') for t in types))}"] if types else []
    model.load_state_dict(state)
    return "; ".join([*weights.changes, *changes])


def count_classes(model: nn.Module, weights: Weights, *, source: object) -> int | None:
    """Number of classes of weights for a model, which may be without memory; None where they have no classifier."""
    state, _ = _named_as_in(model, weights.state_dict, source)
    keys = [f"{head}.{key}" for head in classifier_names(model) for key in ("bias", "weight")]
    return next((len(state[key]) for key in keys if key in state), None)


def count_channels(model: nn.Module, weights: Weights, *, source: object) -> int | None:
    """Channels of the images that weights for a model take, by their first convolution; `model` takes 3, and may be
    without memory. None where the model has no such layer, or theirs is none of it."""
    own, first = model.state_dict(), (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    key = f"{first if isinstance(first, str) else next(iter(first), '')}.weight"
    state, _ = _named_as_in(model, weights.state_dict, source)
    if key not in own or key not in state or own[key].ndim != 4 or state[key].ndim != 4:
        return None
    (outputs, there, *kernel), (wanted, channels, *size) = state[key].shape, own[key].shape
    same = (outputs, kernel) == (wanted, size) and channels % 3 == 0 and there % (channels // 3) == 0
    return there // (channels // 3) if same else None  # above 3: stems that fold space into channels


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """The modules that depend on the classes, as timm's record of the model names them: none, one or several.

    A model may lack them: one that was made without classes, an encoder.
    """
    known = getattr(model, "pretrained_cfg", None) or {}
    names = known.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def checkpoint_filter(architecture: str) -> Callable[..., Any] | None:
    """timm's conversion of state_dicts to a model: names of other code bases, position embeddings of other sizes.

    Which one a model has, timm tells its loader alone, and it differs between models of one class (the interpolation,
    say). So the model is built without memory, with a loader that keeps the filter.
    """
    if architecture in list_models() or not timm.is_model(architecture):
        return None
    kept: list[Any] = []
    loader = timm_builder.load_pretrained

    def keep(*args: Any, filter_fn: Any = None, **kwargs: Any) -> None:
        kept.append(filter_fn)

    timm_builder.load_pretrained = keep
    try:
        with torch.device("meta"):
            timm.create_model(architecture, pretrained=True)
    finally:
        timm_builder.load_pretrained = loader
    return kept[0] if kept else None


def _named_as_in(model: nn.Module, state: State, source: object) -> tuple[State, list[str]]:
    """The weights without the prefix of their network, converted by timm's filter where names or shapes differ, and
    with the name of the model's classifier; and what was done."""
    own, heads = model.state_dict(), classifier_names(model)
    prefix = _prefix(own, state, source)
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    beside = {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}
    changes = [f"stripped {prefix}"] if prefix else []
    if any(_differences(_without(inside, heads), _without(own, heads))):
        inside, converted = _converted(model, inside, own, heads)
        changes += converted
    if len(heads) == 1 and f"{heads[0]}.weight" in own and not any(_of(heads[0], key) for key in inside):
        weight = own[f"{heads[0]}.weight"]
        rest = {**beside, **{key: tensor for key, tensor in inside.items() if key not in own}}
        like = [
            key.removesuffix(".weight")
            for key, tensor in rest.items()
            if key.endswith(".weight") and tensor.ndim == weight.ndim and tensor.shape[1:] == weight.shape[1:]
        ]
        if len(like) == 1:
            for key in [key for key in rest if _of(like[0], key)]:
                inside[heads[0] + key.removeprefix(like[0])] = (beside if key in beside else inside).pop(key)
            changes += [f"renamed {like[0]} to {heads[0]}"] if like[0] != heads[0] else []
    changes += [f"left out {some(list(beside))}"] if beside else []
    return inside, changes


def _prefix(own: State, state: State, source: object) -> str:
    """What stands before the network's keys in a file: the prefix under which most of the model's names are found."""
    found: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        found.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in own)
    likely = [prefix for prefix, count in found.items() if 2 * count >= len(own)]
    if "" in likely:
        return ""
    if len(likely) > 1:
        raise CheckpointError(
            f"{source} holds several networks of this kind, under {' and '.join(sorted(likely))}: "
            "save the one you mean as a state_dict by itself"
        )
    if likely:
        return likely[0]
    # Names of another code base, which timm's filter knows without what a trainer put before all of them.
    first = {key.split(".")[0] for key in state}
    common = first.pop() if len(first) == 1 else None
    return f"{common}." if common and not any(_of(common, key) for key in own) else ""


def _converted(model: nn.Module, state: State, own: State, heads: tuple[str, ...]) -> tuple[State, list[str]]:
    """The weights after timm's filter, if it brings them nearer to the model."""
    apply = checkpoint_filter((getattr(model, "pretrained_cfg", None) or {}).get("architecture") or "")
    if apply is None:
        return state, []
    try:
        try:
            converted = apply(dict(state), model)
        except TypeError:  # some take the state_dict alone
            converted = apply(dict(state))
    except Exception:  # written for the weights that timm publishes: others may lack what it looks for
        return state, []
    body = _without(own, heads)
    before, after = (sum(map(len, _differences(_without(s, heads), body))) for s in (state, converted))
    if after >= before:
        return state, []
    resized = [key for key in converted if key in state and state[key].shape != converted[key].shape]
    renamed = sum(key not in state for key in converted)
    changes = [f"resized {some(resized)}"] if resized else []
    changes += [f"renamed {renamed} of {plural(len(converted), 'key')} as timm does"] if renamed else []
    return converted, changes


def _adapt_channels(model: nn.Module, state: State, own: State, source: object) -> list[str]:
    """Brings the first convolutions of an RGB network to the channels of the model, in place; what was done.

    CheckpointError where only their channels differ, and they are not those of RGB: timm's rule is for color.
    """
    changes = []
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    for name in (first,) if isinstance(first, str) else first:
        key = f"{name}.weight"
        if key not in state or key not in own or state[key].ndim != own[key].ndim or own[key].ndim != 4:
            continue
        (outputs, there, *kernel), (wanted, channels, *size) = state[key].shape, own[key].shape
        if there == channels or (outputs, kernel) != (wanted, size):
            continue
        unit = there // 3  # above 1: stems that fold space into channels
        adapted = None
        if there % 3 == 0 and channels % unit == 0:
            with contextlib.suppress(NotImplementedError):
                adapted = adapt_input_conv(channels // unit, state[key])
        if adapted is None:
            raise CheckpointError(
                f"{source} is of a network whose {name} takes {plural(there, 'channel')}, the one of model.in_chans "
                f"takes {channels}: only weights for RGB are adapted; set model.in_chans={there}, or take some for RGB"
            )
        state[key] = adapted
        changes.append(f"adapted {name} from {there} to {plural(channels, 'channel')}")
    return changes


def _with_new_heads(state: State, own: State, heads: tuple[str, ...]) -> tuple[State, list[str]]:
    """The weights with the model's own classifiers where theirs are absent or of another size: each as a whole."""
    state, new = dict(state), []
    for head in heads:
        keys = [key for key in own if _of(head, key)]
        if any(key not in state or state[key].shape != own[key].shape for key in keys):
            state = {**_without(state, [head]), **{key: own[key] for key in keys}}
            new += keys
    return state, new


def _differences(state: State, own: State) -> tuple[list[str], list[str], list[str]]:
    """Keys that are missing, unknown, and of another shape."""
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    reshaped = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in state and state[key].shape != tensor.shape
    ]
    return sorted(missing), sorted(extra), reshaped


def _without(state: State, modules: Iterable[str]) -> State:
    return {key: tensor for key, tensor in state.items() if not any(_of(module, key) for module in modules)}


def _of(module: str, key: str) -> bool:
    return key.startswith(f"{module}.")


def _some(names: list[str], what: str) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
