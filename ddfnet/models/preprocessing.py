"""The preprocessing of a network, from all that say something of it: one answer, and who gave which part of it.

Each value is that of the first in this list who states it:

1. the command line: `--input-size`, `--crop-pct`, ... of eval.py and predict.py; `data.input.*` of train.py
2. training: the configuration
3. evaluation, export, publishing: the checkpoint. The meta of one of ddfnet states everything. Of others, the `args` of
   timm's train.py, then the config.json of a folder of the hub
4. the entry of the zoo, which states everything
5. timm's record of the model (`pretrained_cfg`). Evaluation takes its test_input_size and test_crop_pct, where it has
   them; training, and evaluation of a checkpoint with the `args` of a training, take input_size and crop_pct
6. ImageNet's usual: the defaults of `Preprocessing`
"""

from collections.abc import Mapping
from typing import Any

from ddfnet.data.preprocessing import Preprocessing, beyond_scale, check_scale, size_text
from ddfnet.utils.errors import CheckpointError, ConfigError, UserError
from ddfnet.utils.text import plural

Stated = dict[str, tuple[Any, str]]  # field of `Preprocessing` -> its value, and who says so
USUAL, AVERAGED = "ImageNet's usual", ", averaged"
FLAGS = {  # of the command lines: the field that each sets
    "input_size": "size",
    "crop_pct": "crop_pct",
    "crop_mode": "crop_mode",
    "interpolation": "interpolation",
    "resize": "resize",
    "mean": "mean",
    "std": "std",
}


def record_name(cfg: Mapping[str, Any]) -> str:
    """Whose record it is: architecture and tag."""
    return ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag"))))


def of_record(cfg: Mapping[str, Any], *, test: bool, source: str | None = None) -> Stated:
    """What a record of timm's (`pretrained_cfg`) states, without `resize`.

    Args:
        test: with the sizes of its test in place of those of its training.
        source: who says so; None: the record by its name.
    """
    source = source or f"timm's record of {record_name(cfg)}"
    keys = {"size": "input_size"} | {key: key for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std")}
    stated = {field: (cfg[key], source) for field, key in keys.items() if cfg.get(key) not in (None, "")}
    if test:
        tested = {"size": "test_input_size", "crop_pct": "test_crop_pct"}
        stated |= {field: (cfg[key], key) for field, key in tested.items() if cfg.get(key)}
    if "size" in stated:
        size, who = stated["size"]
        stated["size"] = tuple(size)[1:], who
    return stated


def of_training(args: Mapping[str, Any], *, channels: int) -> Stated:
    """What the `args` of timm's train.py state: those that were given on its command line."""
    source = "args of its training"
    stated: Stated = {key: (args[key], source) for key in ("crop_pct", "crop_mode", "interpolation") if args.get(key)}
    if args.get("input_size") is not None:
        stated["size"] = tuple(args["input_size"])[1:], source
    elif args.get("img_size") is not None:
        stated["size"] = args["img_size"], source
    for key in ("mean", "std"):
        if args.get(key) is not None:
            values = tuple(args[key])
            stated[key] = values * channels if len(values) == 1 else values, source
    return stated


def foreign_preprocessing(
    cfg: Mapping[str, Any], origin: Mapping[str, Any], *, channels: int, source: object
) -> tuple[Preprocessing, dict[str, str]]:
    """The preprocessing for weights in a file of another trainer, and by field who says so.

    Args:
        cfg: timm's record of the model.
        origin: what the file says, see `ddfnet.checkpoint.Weights`.
        channels: of the network's input.
        source: the file, for messages.

    Raises:
        CheckpointError: values that cannot be used.
    """
    args, record = origin.get("args") or {}, origin.get("record") or {}
    try:
        trained = of_training(args, channels=channels)
        test = not any(key in args for key in ("img_size", "input_size"))  # else the sizes are those of its training
        stated: Stated = {"resize": ("pillow", "the kernel of timm")}  # and of those who published figures
        stated |= of_record(cfg, test=test)
        stated |= of_record(record, test=test, source="its config.json")
        stated = for_channels(stated, channels) | trained
        how = Preprocessing(**{key: value for key, (value, _) in stated.items()})
        if len(how.mean) != channels:
            raise ValueError(f"mean and std are of {plural(len(how.mean), 'channel')}, the network has {channels}")
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{source} states a preprocessing that cannot be used here: {reason[:200]}") from None
    return how, {**dict.fromkeys(Preprocessing.model_fields, USUAL), **{key: who for key, (_, who) in stated.items()}}


def trained_with(origin: Mapping[str, Any], *, channels: int) -> dict[str, Any]:
    """What a file of another trainer states of its training, for a network of so many channels: from its `args`, then
    its config.json or timm's record of the weights. Keys are some of `Preprocessing.to_dict`; nothing of those that it
    does not state, or that cannot be read."""
    try:
        stated = of_record(origin.get("record") or {}, test=False)
        stated |= of_training(origin.get("args") or {}, channels=channels)
        values: dict[str, Any] = {key: stated[key][0] for key in ("crop_pct", "crop_mode") if key in stated}
        if "size" in stated:
            values["input_size"] = stated["size"][0]
        colors: Stated = {key: stated[key] for key in ("mean", "std") if key in stated}
        return values | {key: list(for_channels(colors, channels)[key][0]) for key in colors}
    except TypeError:  # numbers are expected where the file has something else
        return {}


def described(how: Mapping[str, Any]) -> dict[str, str]:
    """Texts of mean, std, size and crop, by key of `data.input`, of a dict as `Preprocessing.to_dict` has it, where it
    has them; equal numbers have equal texts."""
    lists = {key: how[key] for key in ("mean", "std") if how.get(key) and isinstance(how[key], list | tuple)}
    texts = {key: f"[{', '.join(map(_number_text, values))}]" for key, values in lists.items()}
    size = how.get("input_size")
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(pair) == 2:  # a file may hold nonsense
        texts["size"] = size_text(pair[0] if pair[0] == pair[1] else pair)
    return texts | {key: _number_text(how[key]) for key in ("crop_pct", "crop_mode") if how.get(key)}


def _number_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def noted_beyond_scale(how: Preprocessing, origins: Mapping[str, str]) -> dict[str, str]:
    """By field who says so, with a remark on mean and std of a file that cannot be of pixels in [0, 1]."""
    return {**origins, **{key: f"{origins[key]}: not in [0, 1], as pixels are" for key in beyond_scale(how)}}


def for_channels(stated: Stated, channels: int) -> Stated:
    """Mean and std of RGB for another number of channels: their average, in place of all three (1 or 2 channels) or
    behind them (4)."""
    if channels == 3:
        return stated
    usual = Preprocessing()
    adapted = dict(stated)
    for key in ("mean", "std"):
        values, who = stated.get(key, (getattr(usual, key), USUAL))
        if len(values) == 3:
            average = round(sum(values) / 3, 6)
            values = tuple(values) + (average,) * (channels - 3) if channels > 3 else (average,) * channels
            adapted[key] = values, who + AVERAGED
    return adapted


def overridden(
    how: Preprocessing, origins: Mapping[str, str], flags: Mapping[str, Any]
) -> tuple[Preprocessing, dict[str, str]]:
    """A preprocessing with what a command line says, and by field who says so.

    Args:
        flags: by the names of `FLAGS`, as numbers or as the text of a command line (`192x256`, `0.5,0.5,0.5`); None
            stands for not given.

    Raises:
        UserError: a value cannot be used.
    """
    given = {key: flags[key] for key in FLAGS if flags.get(key) is not None}
    changes = {FLAGS[key]: _parsed(key, value) for key, value in given.items()}
    try:
        changed = how.replaced(**changes)
        check_scale(changed, changes)
    except ConfigError as error:
        fault = str(error).removeprefix("data.input.")
        field, _, rest = fault.partition("=")
        flag = next((key for key, of in FLAGS.items() if of == field), None)
        raise UserError(f"--{flag.replace('_', '-')} {rest}" if flag else fault) from None
    if len(changed.mean) != len(how.mean):
        raise UserError(
            f"--mean and --std take {len(how.mean)} values separated by commas, one per channel of the network; got "
            f"{len(changed.mean)}"
        )
    return changed, {**origins, **{FLAGS[key]: f"--{key.replace('_', '-')}" for key in given}}


def _parsed(key: str, value: Any) -> Any:
    if not isinstance(value, str) or key not in ("input_size", "mean", "std"):
        return value
    try:
        if key == "input_size":
            sides = tuple(int(side) for side in value.lower().split("x"))
            return sides[0] if len(sides) == 1 else sides
        return tuple(float(number) for number in value.split(","))
    except ValueError:
        takes = "pixels: 224, or HEIGHTxWIDTH" if key == "input_size" else "numbers separated by commas: 0.5,0.5,0.5"
        raise UserError(f"--{key.replace('_', '-')} takes {takes}; got {value}") from None
