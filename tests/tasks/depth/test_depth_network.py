"""DDF-Up-Net and the interpolation it starts from."""

import pytest
import torch
import torch.nn.functional as F

from ddfnet.tasks.depth.network import DDFUpNet, depth_range, interpolate, sampling_phase


@pytest.fixture
def inputs():
    """Factory of low-resolution depth in meters, and guidance."""

    def make(factor, batch=2, h=4, w=5, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        low = 1 + 4 * torch.rand(batch, 1, h, w, generator=generator, dtype=dtype)
        return low, torch.randn(batch, 3, h * factor, w * factor, generator=generator, dtype=dtype)

    return make


def trained(factor, **options):
    """A network whose last convolution no longer is zero."""
    torch.manual_seed(0)
    net = DDFUpNet(factor, channels=8, guidance_channels=4, **options)
    net.head[-1].reset_parameters()
    return net


# --- interpolation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_samples_keep_their_values_where_they_were_taken(kind, factor):
    high = torch.rand(1, 2, 6 * factor, 5 * factor, dtype=torch.float64)
    phase = sampling_phase(factor)
    low = high[:, :, phase::factor, phase::factor]
    again = interpolate(low, factor, kind)
    assert again.shape == high.shape
    torch.testing.assert_close(again[:, :, phase::factor, phase::factor], low)


@pytest.mark.parametrize(("kind", "degree"), [("bilinear", 1), ("bicubic", 2)])
def test_polynomials_are_exact_inside(kind, degree):
    """Linear interpolation keeps planes, Keys' cubic keeps parabolas: so the positions are right for even factors."""
    factor, size = 4, 48
    x = torch.arange(size, dtype=torch.float64)
    high = (0.3 * x - 2) ** degree + 0 * x[:, None] + 0.5 * x[:, None]
    phase = sampling_phase(factor)
    again = interpolate(high[None, None, phase::factor, phase::factor], factor, kind)[0, 0]
    inner = slice(2 * factor, -2 * factor)
    torch.testing.assert_close(again[inner, inner], high[inner, inner])


def test_odd_factors_agree_with_torch_whose_samples_are_at_the_center():
    low = torch.rand(1, 1, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(interpolate(low, 3, "bilinear"), F.interpolate(low, scale_factor=3, mode="bilinear"))
    # torch's antialiased bicubic has a = -0.5, but another border
    cubic = F.interpolate(low, scale_factor=3, mode="bicubic", antialias=True)
    torch.testing.assert_close(interpolate(low, 3, "bicubic")[..., 6:-6, 6:-6], cubic[..., 6:-6, 6:-6])


def test_interpolation_stays_exact_under_autocast():
    low = torch.rand(1, 1, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(interpolate(low, 4, "bicubic"), interpolate(low, 4, "bicubic").float())
        under = interpolate(low, 4, "bicubic")
    assert torch.equal(under, interpolate(low, 4, "bicubic"))
    with pytest.raises(ValueError, match="nearest, bilinear, bicubic"):
        interpolate(low, 4, "lanczos")


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_shapes(factor, inputs):
    low, guidance = inputs(factor)
    assert trained(factor)(low, guidance).shape == (2, 1, 4 * factor, 5 * factor)
    assert len(trained(factor).upsampling) == torch.tensor(factor).log2()


def test_starts_as_bilinear_interpolation(inputs):
    low, guidance = inputs(4)
    net = DDFUpNet(4, channels=8)
    torch.testing.assert_close(net(low, guidance), interpolate(low, 4, "bilinear"))


def test_depth_may_be_moved_and_scaled(inputs):
    low, guidance = inputs(4, dtype=torch.float64)
    net = trained(4).double()
    torch.testing.assert_close(net(3 * low - 0.5, guidance), 3 * net(low, guidance) - 0.5)
    flat = torch.full_like(low, 2.0)
    assert depth_range(flat)[1].eq(1).all()
    assert net(flat, guidance).isfinite().all()


def test_each_image_of_a_batch_is_for_itself(inputs):
    low, guidance = inputs(4)
    net = trained(4)
    torch.testing.assert_close(net(low, guidance)[1:], net(low[1:], guidance[1:]))


def test_every_new_pixel_sees_its_own_guidance(inputs):
    low, guidance = inputs(4, batch=1, h=12, w=12)
    net = trained(4)
    moved = guidance.clone()
    moved[..., 24, 24] += 1
    change = (net(low, moved) - net(low, guidance))[0, 0].abs()
    around = change[16:33, 16:33]
    # far away too, through the channel filters of later steps, which see the mean of all pixels: but far less
    far = torch.cat([change[:8].flatten(), change[40:].flatten()])
    assert around.max() > 20 * far.max()
    assert change[24, 24] > 20 * far.max()


def test_gradients_reach_every_parameter(inputs):
    net = DDFUpNet(8)  # of its full width: a few hidden channels could all be cut off by their ReLU
    net.head[-1].reset_parameters()
    net(*inputs(8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_learns_where_an_edge_is():
    """One image whose depth has the edge of its guidance: interpolation cannot know it, the network can."""
    torch.manual_seed(0)
    place = torch.arange(32)
    depth = torch.where(place < 14, 1.0, 2.0).expand(1, 1, 16, 32) + 0.01 * place
    guidance = torch.where(place < 14, -1.0, 1.0).expand(1, 3, 16, 32)
    low = depth[:, :, 1::4, 1::4]
    net = DDFUpNet(4, channels=8)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)

    def error():
        return (net(low, guidance) - depth).square().mean()

    before = error().item()
    for _ in range(40):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert error().item() < before / 4


def test_bf16_is_exact_to_some_millimeters(inputs):
    low, guidance = inputs(4)
    net = DDFUpNet(4, channels=16)
    torch.nn.init.normal_(net.head[-1].weight, std=0.01)
    exact = net(low, guidance)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(low, guidance)
    assert half.dtype == torch.float32
    detail = (exact - interpolate(low, 4, "bilinear")).abs().max()
    assert (half - exact).abs().max() < 0.05 * detail


def test_channels_last_changes_nothing(inputs):
    low, guidance = inputs(4)
    net = trained(4)
    expected = net(low, guidance)
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(low, guidance.contiguous(memory_format=torch.channels_last)), expected)


def test_size_of_the_networks():
    """Encoders and head are 5x5 convolutions; of DDF-Up: 4 branches of 1x1 guidance filters and channel filters."""
    convolution = lambda a, b: 25 * a * b + b  # noqa: E731
    hidden = int(32 * 0.2)
    branch = 16 * 9 + 9 + 32 * hidden + hidden + hidden * 32 * 9 + 2 * 32 * 9
    for factor, steps in ((4, 2), (8, 3), (16, 4)):
        encoders = convolution(1, 32) + 2 * convolution(32, 32)
        encoders += convolution(3, 32) + convolution(32, 32) + convolution(32, 16 * steps)
        expected = encoders + 4 * steps * branch + convolution(32, 32) + convolution(32, 1)
        assert sum(p.numel() for p in DDFUpNet(factor).parameters()) == expected


@pytest.mark.parametrize("factor", [0, 1, 3, 12])
def test_other_factors_are_refused(factor):
    with pytest.raises(ValueError, match=f"power of 2.*got {factor}"):
        DDFUpNet(factor)


def test_shapes_that_do_not_fit_are_refused(inputs):
    low, guidance = inputs(4)
    net = trained(4)
    with pytest.raises(ValueError, match=r"guidance: got shape .* expected \(2, 3, 16, 20\)"):
        net(low, guidance[..., :-1])
    with pytest.raises(ValueError, match=r"low: got shape .* expected \(B, 1, h, w\)"):
        net(low[:, 0], guidance)
