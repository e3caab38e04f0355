"""torch.fx sees each layer as one node; TorchScript says what to use instead."""

import pickle
import warnings

import pytest
import timm
import torch
from torch import fx
from torchvision.models.feature_extraction import create_feature_extractor

import ddfnet
from ddfnet.layers import CARAFE, DDF, DDFUp, FilterNorm, Involution
from ddfnet.layers.dynamic_depthwise import CondConv, DepthwiseCondConv, DepthwiseWeightNet

LAYERS = {
    "DDF": lambda: DDF(8, heads=2),
    "DDF, one branch": lambda: DDF(8, filters="spatial"),
    "DDFUp": lambda: DDFUp(8, 2),
    "CARAFE": lambda: CARAFE(8, 2),
    "Involution": lambda: Involution(16),
    "CondConv": lambda: CondConv(8, 8),
    "DepthwiseCondConv": lambda: DepthwiseCondConv(8),
    "DepthwiseWeightNet": lambda: DepthwiseWeightNet(8),
    "FilterNorm": lambda: FilterNorm(1, 3, "spatial"),
}
CHANNELS = {"Involution": 16, "FilterNorm": 9}


@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_with_the_layer_gives_its_values_and_gradients(name):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.ReLU(), LAYERS[name]())
    x = torch.randn(2, CHANNELS.get(name, 8), 6, 7)
    graph = fx.symbolic_trace(network)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    expected, traced = (module(x.requires_grad_()) for module in (network, graph))
    assert torch.equal(expected, traced)
    gradients = [torch.autograd.grad(out.square().sum(), [x, *network.parameters()]) for out in (expected, traced)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["ddf_mul_resnet14_32px", "dw_resnet14_32px"])
def test_feature_extractors_of_torchvision_and_timm(name):
    torch.manual_seed(0)
    model = ddfnet.create_model(name).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_features(x)
        theirs = create_feature_extractor(model, {"layer4": "out"})(x)["out"]
        torch.manual_seed(0)
        timms = timm.create_model(name, features_only=True, feature_cls="fx", out_indices=(4,)).eval()
        graph = timms.graph_module
        graph.load_state_dict({key: model.state_dict()[key] for key in graph.state_dict()})
        assert torch.equal(theirs, expected)
        assert torch.equal(timms(x)[0], expected)


def test_torchscript_is_refused_in_a_sentence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"DDF cannot be compiled by TorchScript .*use torch\.export"):
            torch.jit.script(ddfnet.create_model("ddf_mul_resnet14_32px"))
        traced = torch.jit.trace(model := DDF(8).eval(), x := torch.randn(1, 8, 5, 5))
    assert torch.equal(traced(x), model(x))


def test_layers_are_still_pickled():
    layer = pickle.loads(pickle.dumps(DDF(8)))
    assert isinstance(layer, DDF)
