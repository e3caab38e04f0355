"""Filter normalization: native code and PyTorch's formula against the formula in float64, gradients of any order."""

import pytest
import torch

from ddfnet.ops.filter_norm import autograd, filter_norm, native, plain_filter_norm

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # relative L2


@pytest.fixture(params=["native", "PyTorch"])
def each_path(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(native, "is_usable", lambda *arguments: False)
    elif not (native.exists(torch.float32) and native.exists(torch.float64)):
        pytest.skip("no native code")
    return request.param


@pytest.fixture
def built():
    if not (native.exists(torch.float32) and native.exists(torch.float64)):
        pytest.skip("no native code")


def make(shape, groups, *, with_alpha, dtype=torch.float64, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    logits = logits.contiguous(memory_format=memory_format).requires_grad_()
    alpha = torch.randn(shape[1], generator=generator).requires_grad_() if with_alpha else 0.7
    return logits, groups, alpha


def evaluate(function, logits, groups, alpha, grad):
    inputs = [tensor for tensor in (logits, alpha) if isinstance(tensor, torch.Tensor)]
    filters = function(logits, groups, alpha)
    return [filters, *torch.autograd.grad(filters, inputs, grad.to(filters.dtype))]


def definition(logits, groups, alpha):
    tensor = isinstance(alpha, torch.Tensor)
    return plain_filter_norm(logits, alpha if tensor else None, 1.0 if tensor else alpha, groups)


SHAPES = [
    ((2, 9, 5, 7), 1), ((3, 18, 12, 12), 2), ((1, 75, 9, 8), 3), ((4, 576, 1, 1), 64), ((1, 630, 1, 1), 70),
    ((5, 9, 1, 1), 1), ((2, 9, 1, 70), 1), ((1, 98, 2, 65), 2),
]  # fmt: skip


@pytest.mark.parametrize("with_alpha", [False, True], ids=["constant", "alpha"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_numbers_against_the_definition(each_path, shape, groups, memory_format, with_alpha):
    for dtype in TOLERANCE:
        inputs = make(shape, groups, with_alpha=with_alpha, dtype=dtype, memory_format=memory_format)
        logits, _, alpha = inputs
        assert (not native.is_usable(logits, alpha if with_alpha else None)) == (
            each_path == "PyTorch" or (with_alpha and shape[2:] != (1, 1))
        )
        exact = (logits.detach().double().requires_grad_(), groups)
        exact = (*exact, alpha.detach().double().requires_grad_() if with_alpha else alpha)
        grad = torch.randn(shape, dtype=torch.float64).to(dtype).double()
        actual, expected = evaluate(filter_norm, *inputs, grad), evaluate(definition, *exact, grad)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert actual[0].dtype == (wide if with_alpha else dtype)
        assert actual[0].is_contiguous(memory_format=memory_format)
        for a, b in zip(actual, expected, strict=True):
            assert (a.double() - b).norm() <= TOLERANCE[a.dtype] * b.norm()


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_equal_logits_give_zero_filters_and_gradients(each_path, value):
    for dtype in TOLERANCE:
        logits = torch.full((2, 9, 4, 20), value, dtype=dtype, requires_grad=True)
        filters = filter_norm(logits, 1, 0.7)
        assert (filters == 0).all()
        assert torch.autograd.grad(filters.sum(), logits)[0].isfinite().all()


def test_nan_and_inf_spoil_their_filter_and_no_other(each_path):
    logits = torch.randn(2, 9, 4, 20)
    logits[0, 3, 1, 2], logits[1, 0, 0, 0], logits[1, 8, 3, 19] = float("nan"), float("inf"), -float("inf")
    filters, expected = filter_norm(logits, 1, 0.7), definition(logits, 1, 0.7)
    torch.testing.assert_close(filters, expected, equal_nan=True)
    assert filters.isnan().sum() == 27


@pytest.mark.parametrize(("shape", "groups", "with_alpha"), [((2, 18, 2, 3), 2, False), ((2, 18, 1, 1), 2, True)])
def test_gradients_of_first_and_second_order(each_path, shape, groups, with_alpha):
    logits, _, alpha = make(shape, groups, with_alpha=with_alpha)
    inputs = (logits, alpha.detach().double().requires_grad_()) if with_alpha else (logits,)

    def function(logits, alpha=alpha):
        return filter_norm(logits, groups, alpha)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_opcheck(each_path):
    for shape, groups, with_alpha in (((2, 18, 3, 4), 2, False), ((2, 18, 1, 1), 2, True)):
        logits, _, alpha = make(shape, groups, with_alpha=with_alpha, dtype=torch.float32)
        settings = (alpha, 1.0, groups) if with_alpha else (None, alpha, groups)
        torch.library.opcheck(torch.ops.ddfnet.filter_norm.default, (logits, *settings))
        grad = torch.randn(shape, requires_grad=True)
        torch.library.opcheck(torch.ops.ddfnet.filter_norm_backward.default, (grad, logits, *settings))


def test_tensors_in_any_strides_and_empty_ones(built):
    logits = torch.randn(2, 18, 6, 28)
    filters = filter_norm(logits, 2, 0.7)
    for view in (
        torch.cat([logits, logits], 1)[:, 18:],
        torch.stack([logits, logits], 4)[..., 0],
        logits.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(filter_norm(view, 2, 0.7), filters)
    logits = torch.randn(0, 18, 1, 1, requires_grad=True)
    alpha = torch.randn(18, requires_grad=True)
    filter_norm(logits, 2, alpha).sum().backward()
    assert logits.grad.shape == logits.shape
    assert (alpha.grad == 0).all()


def test_the_same_bits_for_any_number_of_threads(built):
    before = torch.get_num_threads()
    try:
        for shape, groups, with_alpha in (((8, 18, 40, 50), 2, False), ((16, 4608, 1, 1), 512, True)):
            inputs = make(shape, groups, with_alpha=with_alpha, dtype=torch.float32)
            grad = torch.randn(shape)
            torch.set_num_threads(1)
            once = evaluate(filter_norm, *inputs, grad)
            for count in (2, 3, 7):
                torch.set_num_threads(count)
                again = evaluate(filter_norm, *inputs, grad)
                assert all(torch.equal(a, b) for a, b in zip(again, once, strict=True))
    finally:
        torch.set_num_threads(before)


def targets_of(function, *inputs):
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def keep(graph, _):
        graphs.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    return compiled(*inputs), graphs


def test_compile_sees_an_opaque_call_where_there_is_native_code(built, monkeypatch):
    logits, groups, alpha = make((2, 18, 3, 4), 2, with_alpha=False, dtype=torch.float32)
    function = lambda logits: filter_norm(logits, groups, alpha).relu()  # noqa: E731
    compiled, targets = targets_of(function, logits.detach())
    assert "ddfnet.filter_norm_opaque.default" in targets
    torch.testing.assert_close(compiled, function(logits.detach()))
    monkeypatch.setattr(native, "_library", lambda accumulator: "none")
    compiled, targets = targets_of(function, logits.detach())
    assert not any("ddfnet" in target for target in targets)
    torch.testing.assert_close(compiled, function(logits.detach()))


def test_compiled_gradients(each_path):
    torch._dynamo.reset()
    for shape, groups, with_alpha in (((2, 18, 3, 4), 2, False), ((2, 18, 1, 1), 2, True)):
        inputs = make(shape, groups, with_alpha=with_alpha, dtype=torch.float32)
        grad = torch.randn(shape)
        compiled = evaluate(torch.compile(filter_norm, fullgraph=True), *inputs, grad)
        for a, b in zip(compiled, evaluate(filter_norm, *inputs, grad), strict=True):
            torch.testing.assert_close(a, b)


def test_export_keeps_one_node_and_decomposes_into_pytorch():
    class Layer(torch.nn.Module):
        def forward(self, logits):
            return filter_norm(logits, 2, 0.7)

    logits = torch.randn(2, 18, 3, 4)
    program = torch.export.export(Layer(), (logits,))
    assert [str(node.target) for node in program.graph.nodes if "ddfnet" in str(node.target)] == [
        "ddfnet.filter_norm.default"
    ]
    plain = program.run_decompositions(
        {**torch.export.default_decompositions(), torch.ops.ddfnet.filter_norm.default: autograd.plain_filter_norm}
    )
    assert not any("ddfnet" in str(node.target) for node in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(logits), Layer()(logits))


@pytest.mark.parametrize("learned", [False, True])
def test_second_order_where_the_gradient_is_made_of_the_logits(learned):
    """As within a network. The way to the logits through that gradient must count once, and graphs may be freed."""
    torch.manual_seed(0)
    logits = torch.randn(2, 18, 2, 3, dtype=torch.float64, requires_grad=True)
    alpha = torch.randn(18, dtype=torch.float64, requires_grad=True) if learned else 0.5

    def second_order(function):
        y = function(logits, 2, alpha)
        inputs = [logits, alpha] if learned else [logits]
        grads = torch.autograd.grad((y.pow(3) * logits.sin()).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)

    def formula(logits, groups, alpha):
        taps = logits.unflatten(1, (groups, -1))
        normal = ((taps - taps.mean(2, keepdim=True)) / taps.std(2, keepdim=True)).flatten(1, 2)
        return normal * (alpha.view(1, -1, 1, 1) if learned else alpha)

    for actual, exact in zip(second_order(filter_norm), second_order(formula), strict=True):
        torch.testing.assert_close(actual, exact)
