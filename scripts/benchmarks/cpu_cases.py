"""What `cpu.py` measures: the operators beside their published formulations, and networks in several runtimes."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddfnet  # noqa: F401  (registers its models)
from ddfnet.inference.formats import onnx_file
from ddfnet.inference.programs import traced
from ddfnet.models.fold import fold_batch_norm
from ddfnet.ops.ddf import ddf, ddf_up, native

SHAPES = {"stage 1": (64, 56), "stage 2": (128, 28), "stage 3": (256, 14), "stage 4": (512, 7)}  # channels, size
GROUP_CHANNELS, CARAFE_SCALE, CARAFE_KERNEL = 16, 2, 5  # of the involution and CARAFE papers
PYTORCH_PATH = "ddf, PyTorch path"
NETWORKS = ("ddf_mul_resnet50", "resnet50")
Call = Callable[[], Any]


def published_involution(x: Tensor, filters: Tensor) -> Tensor:
    """Involution as its paper writes it: unfold, multiply, sum. filters: (B, G*9, H, W)."""
    batch, channels, height, width = x.shape
    groups = channels // GROUP_CHANNELS
    windows = F.unfold(x, 3, padding=1).view(batch, groups, GROUP_CHANNELS, 9, height, width)
    return (windows * filters.view(batch, groups, 1, 9, height, width)).sum(3).view(x.shape)


def published_carafe(x: Tensor, filters: Tensor) -> Tensor:
    """CARAFE's reassembly as a product of windows and filters. filters: (B, scale^2 * k^2, H, W)."""
    (batch, channels, height, width), k, phases = x.shape, CARAFE_KERNEL, CARAFE_SCALE**2
    windows = F.unfold(x, k, padding=k // 2).view(batch, channels, k * k, height * width)
    y = torch.einsum("bckn,bpkn->bcpn", windows, filters.reshape(batch, phases, k * k, height * width))
    return F.pixel_shuffle(y.reshape(batch, channels * phases, height, width), CARAFE_SCALE)


def in_pytorch(function: Call) -> Call:
    """The same without native code."""

    def call() -> Any:
        with mock.patch.object(native, "is_usable", return_value=False):
            return function()

    return call


def operator_calls(batch: int, channels: int, size: int, dtype: torch.dtype) -> dict[str, tuple[Callable, tuple]]:
    """Functions and their arguments, channels_last, by name."""
    torch.manual_seed(0)

    def last(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, dtype=dtype) / math.sqrt(math.prod(shape[1:]))).requires_grad_()

    x, channel = last(batch, channels, size, size), torch.randn(batch, channels, 3, 3).requires_grad_()
    grouped = last(batch, channels // GROUP_CHANNELS * 9, size, size)
    reassembly = last(batch, CARAFE_SCALE**2 * CARAFE_KERNEL**2, size, size)
    return {
        "ddf": (ddf, (x, channel, last(batch, 9, size, size))),
        PYTORCH_PATH: (ddf, (x, channel, last(batch, 9, size, size))),
        "depthwise 3x3, oneDNN": (partial(F.conv2d, padding=1, groups=channels), (x, weight(channels, 1, 3, 3))),
        "dense 3x3, oneDNN": (partial(F.conv2d, padding=1), (x, weight(channels, channels, 3, 3))),
        "involution 3x3, ddf": (lambda x, f: ddf(x, None, f, kernel_size=3), (x, grouped)),
        "involution 3x3, as published": (published_involution, (x, grouped)),
        "CARAFE 5x5 x2, ddf_up": (lambda x, f: ddf_up(x, None, f, scale=2, kernel_size=5), (x, reassembly)),
        "CARAFE 5x5 x2, as published": (published_carafe, (x, reassembly)),
    }


SAME = {"involution 3x3, as published": "involution 3x3, ddf", "CARAFE 5x5 x2, as published": "CARAFE 5x5 x2, ddf_up"}


def forward(function: Callable, inputs: tuple[Tensor, ...]) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    return call


def forward_backward(function: Callable, inputs: tuple[Tensor, ...]) -> Call:
    grad = torch.randn_like(forward(function, inputs)())
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def network_calls(
    mode: str, batch: int, size: int, dtype: torch.dtype, threads: int, runtimes: list[str], scratch: Path
) -> dict[str, Call]:
    """For each network and runtime a call: inference, or a training step with SGD."""
    calls = {}
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    for name in NETWORKS:
        torch.manual_seed(0)
        network = timm.create_model(name).to(memory_format=torch.channels_last)
        if mode == "training":
            calls[f"{name}, eager"] = _training(network, images, dtype)
            continue
        network = network.eval().requires_grad_(False)
        if "eager" in runtimes:
            calls[f"{name}, eager"] = _inference(network, images, dtype)
        if "compiled" in runtimes:
            calls[f"{name}, compiled"] = _inference(torch.compile(network, dynamic=False), images, dtype)
        path = scratch / f"{name}-{size}.onnx"
        if not path.exists() and {"onnxruntime", "openvino"} & set(runtimes):
            onnx_file.save(traced(network.to(memory_format=torch.contiguous_format), size, batch=None), path, {})
            network.to(memory_format=torch.channels_last)
        if "onnxruntime" in runtimes and dtype == torch.float32:
            calls[f"{name}, onnxruntime"] = _onnxruntime(path, images, threads)
        if "openvino" in runtimes:
            calls[f"{name}, OpenVINO"] = _openvino(path, images, threads, dtype)
        if "folded" in runtimes:
            network = timm.create_model(name).to(memory_format=torch.channels_last).eval().requires_grad_(False)
            fold_batch_norm(network, size)
            calls[f"{name}, eager, batch norm folded"] = _inference(network, images, dtype)
    return calls


def _inference(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Call:
    def call() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return network(images)

    return call


def _training(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Call:
    optimizer = torch.optim.SGD(network.train().parameters(), lr=1e-3, momentum=0.9)
    labels = torch.randint(network.num_classes, images.shape[:1])

    def call() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def _onnxruntime(path: Path, images: Tensor, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else it takes CPU time of the others
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    array = images.contiguous().numpy()
    return lambda: session.run(None, {"image": array})


def _openvino(path: Path, images: Tensor, threads: int, dtype: torch.dtype) -> Call:
    import openvino

    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    settings["ENABLE_CPU_PINNING"] = False  # or PyTorch's threads are pinned as well, all of them to one core
    model = openvino.Core().read_model(path)
    model.reshape({0: list(images.shape)})
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    array = images.contiguous().numpy()
    return lambda: request.infer({0: array})
