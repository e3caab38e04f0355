"""The variants of a classifier that precision.py compares: each a recipe of a few lines with its packages."""

import copy
import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.inference.formats import INPUT, OUTPUT, missing_packages, onnx_file, openvino_ir
from ddfnet.inference.programs import decomposed, traced

aten = torch.ops.aten
Predict = Callable[[Tensor], Tensor]
REFERENCE = "float32"


def variants(
    network: nn.Module, size: int | tuple[int, int, int], folder: Path, calibration: Sequence[Tensor]
) -> dict[str, Predict | str]:
    """The network in each precision, by name; a sentence in place of one that cannot be had here.

    Each takes images float32 (B, 3, size, size) and returns logits (B, classes). float32 (`REFERENCE`) is the first.

    Args:
        folder: for the files.
        calibration: batches of images from which ranges of activations are measured; may be empty.
    """
    linears = sum(isinstance(module, nn.Linear) for module in network.modules())
    layers = f"{linears} linear layer{'s' * (linears != 1)} only"
    pure = copy.deepcopy(network).to(torch.bfloat16)
    cases: dict[str, Predict | str] = {
        REFERENCE: network,
        "bfloat16 autocast": torch.autocast("cpu", torch.bfloat16)(lambda image: network(image)),
        "float16 autocast": torch.autocast("cpu", torch.float16)(lambda image: network(image)),
        "bfloat16 weights and input": lambda image: pure(image.to(torch.bfloat16)),
        f"int8, dynamic, {layers}": _dynamic(network),
        f"torchao int8 weights, {layers}": _torchao(network, "Int8WeightOnlyConfig"),
        f"torchao fp8 weights, {layers}": _torchao(network, "Float8WeightOnlyConfig"),
        "PT2E static int8, simulated": _pt2e(network, size, calibration),
    }
    return cases | _onnxruntime(network, size, folder, calibration) | _openvino(network, size, folder)


def _dynamic(network: nn.Module) -> Predict | str:
    if not torch.backends.quantized.supported_engines:
        return "not measured: this PyTorch has no engine for quantized layers"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favor of torchao, which this package does not require
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(network), {nn.Linear}, dtype=torch.qint8)


def _torchao(network: nn.Module, config: str) -> Predict | str:
    try:
        quantization = importlib.import_module("torchao.quantization")
    except ImportError:
        return "not measured: pip install torchao"
    quantized = copy.deepcopy(network)
    quantization.quantize_(quantized, getattr(quantization, config)())
    return quantized


def _pt2e(network: nn.Module, size: int | tuple[int, int, int], calibration: Sequence[Tensor]) -> Predict | str:
    """Quantized as for Inductor on x86, and run as the program with quantize and dequantize: accuracy, not speed."""
    if not calibration:
        return "not measured: needs --calibration"
    try:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError:
        return "not measured: pip install torchao"
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    # The quantizer looks for these as PyTorch has them, not for the core operators they are made of.
    keep = (aten.conv2d.default, aten.linear.default, aten.batch_norm.default)
    prepared = prepare_pt2e(decomposed(traced(network, size, batch=None), keep=keep).module(), quantizer)
    for images in calibration:
        prepared(images)
    return convert_pt2e(prepared)


class _Reader:
    """Calibration images for onnxruntime."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        images = next(self.batches, None)
        return None if images is None else {INPUT: images.numpy()}


def _onnxruntime(
    network: nn.Module, size: int | tuple[int, int, int], folder: Path, calibration: Sequence[Tensor]
) -> dict[str, Predict | str]:
    names = [f"{kind}, onnxruntime" for kind in ("float32", "float16", "dynamic int8", "static int8", "static uint8")]
    if missing := missing_packages("onnx"):
        return dict.fromkeys(names, f"not measured: pip install {' '.join(missing)}")
    import onnx
    from onnxruntime import quantization
    from onnxruntime.transformers.float16 import convert_float_to_float16

    paths = [folder / f"{kind}.onnx" for kind in ("float32", "float16", "dynamic_int8", "static_int8", "static_uint8")]
    whole, half, dynamic, int8, uint8 = paths
    onnx_file.save(traced(network, size, batch=None), whole, {})
    onnx.save(convert_float_to_float16(onnx.load(whole), keep_io_types=True), half)
    quantization.quantize_dynamic(whole, dynamic, weight_type=quantization.QuantType.QUInt8)
    for path, kind in ((int8, quantization.QuantType.QInt8), (uint8, quantization.QuantType.QUInt8)):
        if calibration:
            quantization.quantize_static(
                whole, path, _Reader(calibration), per_channel=True, activation_type=kind, weight_type=kind
            )
    return {
        name: _session(path) if path.exists() else "not measured: needs --calibration"
        for name, path in zip(names, paths, strict=True)
    }


def _session(path: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])


def _openvino(network: nn.Module, size: int | tuple[int, int, int], folder: Path) -> dict[str, Predict | str]:
    names = ("float32, OpenVINO", "OpenVINO's default")
    if missing := missing_packages("openvino"):
        return dict.fromkeys(names, f"not measured: pip install {' '.join(missing)}")
    import openvino

    path = folder / "float32.xml"
    openvino_ir.save(traced(network, size, batch=None), path, {})
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}

    def compiled(**settings: str) -> Predict:
        call = openvino.Core().compile_model(path, "CPU", {**threads, **settings})
        return lambda image: torch.from_numpy(call({INPUT: image.numpy()})[OUTPUT].copy())

    default = openvino.Core().compile_model(path, "CPU").get_property("INFERENCE_PRECISION_HINT").get_type_name()
    exact, usual = compiled(**openvino_ir.SETTINGS), compiled()
    return {names[0]: exact, f"{names[1]} ({default} here)": usual}
