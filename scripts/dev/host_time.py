#!/usr/bin/env python
"""Host time of the DDF layer: Python, PyTorch and Triton until a kernel is launched, without a GPU and its kernels.

    python scripts/dev/host_time.py              # microseconds and launches
    python scripts/dev/host_time.py --profile    # and where the time of a training step is spent

A network on a fast GPU waits for the host when that takes longer than the kernels. Launches are counted too: those of
Triton, and operations of PyTorch that compute something, each of which is a kernel on a GPU. On the CPU those compute
for real; the maps are tiny (2 x 64 x 8 x 8), so that this is little. Times are of the process, the best of several
rounds. Results mean nothing. A dense 3x3 convolution is measured beside the layer, the layer between batch
normalizations with ReLUs, in its kernels (`fused_norms=all`) and apart, and the end of a block: batch normalization,
the sum with the shortcut, ReLU.

Exit code 0: measured; 2: bad arguments.
"""

import argparse
import copy
import cProfile
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch
import triton
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ddfnet
from ddfnet.layers.normalized_ddf import normalized_ddf
from ddfnet.layers.normalized_sum import normalized_sum
from ddfnet.utils.cli import HelpFormatter, at_least
from ddfnet.utils.files import write_text
from scripts.dev import stub_gpu

SIZE = (2, 64, 8, 8)
# Operations that launch nothing: they make views, or tensors that nobody has written yet.
VIEWS = (
    *("view", "reshape", "expand", "permute", "transpose", "squeeze", "unsqueeze", "slice", "select", "empty"),
    *("detach", "as_strided", "t.", "alias", "unflatten", "split", "_unsafe_view", "new_empty", "unbind", "flatten"),
    "_reshape_alias",
)  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts those of PyTorch that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        if not name.startswith((*VIEWS, "ddfnet")):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Between(nn.Module):
    """A layer between batch normalizations with ReLUs."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        before, after = nn.BatchNorm2d(64), nn.BatchNorm2d(64)
        self.fused = fused
        self.layers = nn.Sequential(before, nn.ReLU(), ddfnet.DDF(64), after, nn.Identity(), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As a bottleneck calls them."""
        return normalized_ddf(x, *self.layers, training=True) if self.fused else self.layers(x)


class End(nn.Module):
    """Batch normalization, sum and ReLU."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.norm, self.act = fused, nn.BatchNorm2d(64), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As a bottleneck calls them."""
        if self.fused:
            return normalized_sum(x, self.norm, x, self.act, training=True)
        y = self.norm(x)
        y += x
        return self.act(y)


def cases() -> dict[str, Callable[[], Any]]:
    """Calls by name, of a layer and of what it is compared with; bfloat16 autocast, channels_last."""
    torch.manual_seed(0)
    x = torch.randn(SIZE, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    grad_y, wanted = torch.randn_like(x), x.clone().requires_grad_()
    layers = {"ddf_layer": ddfnet.DDF(64), "layers apart": ddfnet.DDF(64, fused_filters=False)}
    layers |= {"norms in kernels": Between(True), "norms apart": Between(False)}
    layers |= {"end of a block in one": End(True), "end of a block apart": End(False)}
    layers["Conv2d 3x3"] = nn.Conv2d(64, 64, 3, padding=1, bias=False)

    def inference(layer: nn.Module) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            layer(x)

    def training(layer: nn.Module, inputs: list[torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(wanted)
        torch.autograd.grad(y, inputs, grad_y)

    calls: dict[str, Callable[[], Any]] = {}
    for name, layer in layers.items():
        layer.to(memory_format=torch.channels_last)
        evaluated = copy.deepcopy(layer).eval()
        calls[f"{name}, inference"] = lambda layer=evaluated: inference(layer)  # type: ignore[misc]
        inputs = [wanted, *layer.parameters()]
        calls[f"{name}, training"] = lambda layer=layer, inputs=inputs: training(layer, inputs)  # type: ignore[misc]
    return calls


def microseconds(call: Callable[[], Any], rounds: int, repeats: int) -> float:
    """CPU time of a call: the best round."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(repeats):
            call()
        times.append((time.process_time() - started) / repeats)
    return 1e6 * min(times)


def launches(call: Callable[[], Any], triton_launches: Counter) -> tuple[int, Counter]:
    """Of Triton kernels, and operations of PyTorch. Eager calls take the way they take while no mode looks on."""
    triton_launches.clear()
    modules = [m for name, m in sys.modules.items() if name.startswith("ddfnet.ops") and hasattr(m, "is_plain")]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "is_plain", return_value=True))
        operations = stack.enter_context(Operations())
        call()
    return triton_launches.total(), operations.counts


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=15)
    parser.add_argument("--repeats", type=at_least(1), default=50, help="calls of a round")
    parser.add_argument("--profile", action="store_true", help="where the time of a training step is spent")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="gets host_time.md")
    arguments = parser.parse_args(argv)
    counter = stub_gpu.install()
    torch.set_num_threads(1)
    lines = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(f"Host time: torch {torch.__version__}, triton {triton.__version__}, one thread; maps of {SIZE}\n\n```")
    say(f"{'':26}{'host us':>9}{'Triton':>8}{'PyTorch':>9}  operations of PyTorch")
    calls = cases()
    for name, call in calls.items():
        call()  # compiles, or finds the kernels in the cache
        kernels, operations = launches(call, counter)
        best = microseconds(call, arguments.rounds, arguments.repeats)
        listed = ", ".join(f"{n} {op}" for op, n in operations.most_common())
        say(f"{name:26}{best:9.0f}{kernels:8}{operations.total():9}  {listed}")
    say("```")
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_text(arguments.output / "host_time.md", "\n".join([*lines, ""]))
    if arguments.profile:
        profile = cProfile.Profile()
        profile.runcall(lambda: [calls["ddf_layer, training"]() for _ in range(1000)])
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    return 0


if __name__ == "__main__":
    sys.exit(main())
