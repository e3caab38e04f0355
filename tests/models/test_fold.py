"""Batch normalization folded into convolutions: the same logits, fewer layers, and nothing folded that must not be."""

import pytest
import timm
import torch
from torch import nn

import ddfnet  # noqa: F401  (registers its models)
from ddfnet.models.fold import fold_batch_norm


def randomize(network):
    """Statistics and affine parameters as after training, so that a fold that forgets one is seen."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            if module.affine:
                module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
    return network.eval()


def norms(network):
    return sum(type(module) is nn.BatchNorm2d for module in network.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [("resnet18", 0), ("resnet50", 0), ("resnet50d", 0), ("ddf_mul_resnet14_32px", 4), ("ddf_mul_resnet50", 16)],
)
def test_logits_are_the_same_in_float64(name, left):
    torch.manual_seed(0)
    network = randomize(timm.create_model(name, num_classes=10)).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected, before = network(images), norms(network)
        folded = fold_batch_norm(network, 64)
        assert folded == before - left
        assert norms(network) == left
        torch.testing.assert_close(network(images), expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())


def test_without_affine_parameters_and_with_a_bias():
    torch.manual_seed(0)
    network = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU()))
    images = torch.randn(2, 3, 9, 9)
    expected = network(images)
    assert fold_batch_norm(network, 9) == 1
    torch.testing.assert_close(network(images), expected)


class Shared(nn.Module):
    """One convolution that runs twice, each time with another normalization behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.two(self.conv(self.one(self.conv(x)).relu()))


def test_what_is_not_folded():
    assert fold_batch_norm(randomize(Shared()), 8) == 0
    assert fold_batch_norm(randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))), 8) == 0
    with pytest.raises(ValueError, match="training mode"):
        fold_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), 8)


class Twice(nn.Module):
    """The output of the convolution is used a second time, past the normalization."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


def test_a_fold_that_would_change_the_outputs_is_refused():
    with pytest.raises(ValueError, match="the outputs change"):
        fold_batch_norm(randomize(Twice()), 8)
