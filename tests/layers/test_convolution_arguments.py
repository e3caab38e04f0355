"""A layer in the place of nn.Conv2d, written as that one is: the error says what to leave out, and why."""

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
    with pytest.raises(TypeError, match=r"nn.Conv2d\(64, 64, 3, 2\) is written DDF\(64, 3, stride=2\)"):
        ddfnet.DDF(64, 64, 3, padding=1)
    assert ddfnet.DDF(64, 5).kernel_size == 5
