"""A layer in the place of nn.Conv2d, written as that one is: the error says what to leave out, and why."""

import inspect

import pytest

import ddfnet


@pytest.mark.parametrize("layer", [ddfnet.DDF, ddfnet.Involution])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("padding", "leave it out: it is implied"),
        ("padding_mode", "leave it out: the padding is always with zeros"),
        ("groups", "leave it out: each channel is filtered by itself"),
        ("bias", "leave it out: there is none"),
        ("out_channels", "leave it out: `channels` is the number of both"),
        ("strid", "did you mean stride?"),
        ("anything", "it has channels, kernel_size, stride"),
    ],
)
def test_arguments_of_a_convolution_are_refused_with_the_reason(layer, name, reason):
    with pytest.raises(TypeError) as info:
        layer(64, 3, **{name: 1})
    assert str(info.value).startswith(f"{layer.__name__}() got an unexpected keyword argument '{name}': {reason}")


def test_positions_are_those_of_channels_and_kernel_size_alone():
    assert ddfnet.DDF(64, 5).kernel_size == 5


POSITIONS = "DDF takes `channels` and `kernel_size` by position, all else by name"
IMPLIED = "leave it out: it is implied, dilation * (kernel_size // 2)"
PADDING = f"padding: {IMPLIED}"
GROUPS = "leave it out: each channel is filtered by itself, as by a depthwise convolution"
WIDER = "it has as many output as input channels: put a 1x1 convolution of 64 to 128 channels behind it"


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((64, 64, 3), {"padding": 1}, f"{POSITIONS}; {PADDING}. Write DDF(64, 3)"),
        ((64, 128, 3), {"stride": 2, "padding": 1}, f"{POSITIONS}; {WIDER}; {PADDING}. Write DDF(64, 3, stride=2)"),
        (
            (64, 64, 3, 2, 1, 1, 64),
            {},
            f"{POSITIONS}; {PADDING}; groups: {GROUPS}. Write DDF(64, 3, stride=2, dilation=1)",
        ),
        (
            (64, 3),
            {"padding": 1, "groups": 64},
            f"DDF() got an unexpected keyword argument 'padding': {IMPLIED}; 'groups': {GROUPS}",
        ),
        ((), {"in_channels": 64, "out_channels": 64, "kernel_size": 3}, f"{POSITIONS}. Write DDF(64, 3)"),
        ((64, 64), {"kernel_size": 3}, f"{POSITIONS}. Write DDF(64, 3)"),
        ((), {"kernel_size": 3}, "DDF(): missing a required argument: 'channels'"),
    ],
)
def test_a_call_of_a_convolution_is_rewritten_with_all_its_faults(arguments, named, message):
    with pytest.raises(TypeError) as info:
        ddfnet.DDF(*arguments, **named)
    assert str(info.value) == message


@pytest.mark.parametrize("layer", [ddfnet.DDF, ddfnet.Involution])
def test_signatures_are_those_of_the_layers(layer):
    kinds = {one.kind for one in inspect.signature(layer).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
