"""The native code on the CPU: numbers in every layout, threads, forks, and what happens where it cannot be built."""

import ctypes
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from ddf_cases import FORMATS, TOLERANCE, evaluate, expected, make_inputs, present, relative_error
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.utils.data import DataLoader, Dataset

from ddfnet.ops import native_build, native_call
from ddfnet.ops.ddf import ddf, ddf_up, eager, native
from ddfnet.ops.ddf.arguments import Arguments, Needed
from tests.ops.ddf.conftest import native_code

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def built() -> None:
    native_code()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def anew(monkeypatch):
    """As in a new process: the library is looked for again."""
    monkeypatch.setattr(native, "_library", cache(native._library.__wrapped__))


# Vectors hold 4 to 16 channels; maps of 24 columns and more are read where they are, if they can be.
CASES = [
    {"channels": 32, "width": 30},
    {"channels": 48, "width": 7, "combine": "add"},
    {"channels": 24, "width": 27, "heads": 3},
    {"channels": 64, "heads": 4, "width": 26, "height": 12},
    {"channels": 32, "width": 27, "filters": "channel"},
    {"channels": 32, "width": 27, "filters": "spatial", "heads": 2},
    {"channels": 16, "width": 31, "stride": 2},
    {"channels": 20, "width": 9, "stride": 3, "heads": 2, "combine": "add"},
    {"channels": 16, "width": 50, "kernel_size": 5},
    {"channels": 33, "width": 12, "kernel_size": 5, "stride": 2, "dilation": 2},
    {"channels": 16, "width": 75, "kernel_size": 7, "height": 5},
    {"channels": 16, "width": 10, "kernel_size": 7, "stride": 2},
    {"channels": 16, "width": 12, "kernel_size": 9, "filters": "spatial"},
    {"channels": 32, "width": 50, "dilation": 2, "combine": "add"},
    {"channels": 16, "width": 6, "dilation": 9},
    {"channels": 16, "width": 26, "kernel_size": 1, "stride": 2},
    {"channels": 32, "width": 70, "height": 40, "batch": 1},
    {"channels": 32, "width": 26, "height": 5, "scale": 2},
    {"channels": 16, "width": 7, "height": 5, "scale": 3, "heads": 2, "combine": "add"},
    {"channels": 24, "width": 8, "height": 6, "scale": 2, "kernel_size": 5, "filters": "spatial"},
]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers_against_the_definition(built, case, memory_format, monkeypatch):
    monkeypatch.setattr(eager, "forward", None)  # it is the native code that runs
    monkeypatch.setattr(eager, "backward", None)
    options = {key: case[key] for key in ("stride", "dilation", "scale", "combine") if key in case}
    options["kernel_size"] = case.get("kernel_size", 3)
    shape = {key: value for key, value in case.items() if key not in ("dilation", "combine")}
    shape["memory_format"] = FORMATS[memory_format]
    function = ddf_up if "scale" in case else ddf
    for dtype, filter_dtype in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ):
        inputs = make_inputs(**shape, dtype=dtype, filter_dtype=filter_dtype)
        pairs = zip(evaluate(function, inputs, **options), expected(inputs, **options), strict=True)
        for index, (actual, exact) in enumerate(pairs):
            assert relative_error(actual, exact) <= TOLERANCE[actual.dtype], (dtype, index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_a_half_precision(built, dtype):
    """Read, multiplied in float32 and rounded to the nearest as PyTorch does it: all 65,536, subnormals and NaN too."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 64, 32, 32)
    for factor in (1.0, 0.37, 3e-5, 1e5):
        channel = torch.full((1, 64, 1, 1), factor)
        for memory_format in FORMATS.values():
            y = ddf(x.contiguous(memory_format=memory_format), channel, None)
            exact = (x.float() * channel).to(dtype)
            torch.testing.assert_close(y, exact, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [9, 30])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("poisoned", [0, 1, 2])
def test_nan_and_inf_go_where_they_go_in_pytorch(built, width, memory_format, poisoned):
    inputs = make_inputs(2, 32, 6, width, memory_format=FORMATS[memory_format], requires_grad=False)
    values = inputs[poisoned].permute(*reversed(range(4)))
    values[1, 1, 3, 0], values[-1, -1, 1, 1], values[2, 0, 0, 0] = float("nan"), float("inf"), -float("inf")
    args = Arguments(*inputs, 3, 1, 1, True, 1)
    grad_y = torch.randn_like(inputs[0])
    for a, b in zip(
        (native.forward(args), *native.backward(grad_y, args, Needed(True, True, True))),
        (eager.forward(args), *eager.backward(grad_y, args, Needed(True, True, True))),
        strict=True,
    ):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert native.forward(args).isnan().any()


def test_tensors_in_any_strides_and_at_any_address(built):
    x, channel, spatial = make_inputs(2, 32, 6, 28, memory_format=torch.channels_last, requires_grad=False)
    exact = ddf(x, channel, spatial)
    shifted = torch.empty(x.numel() + 1)[1:].view(2, 6, 28, 32).permute(0, 3, 1, 2).copy_(x)
    for filters in (
        (channel.transpose(2, 3).contiguous().transpose(2, 3), spatial.contiguous()),
        (channel.to(memory_format=torch.channels_last), torch.cat([spatial, spatial], 1)[:, 9:]),
        (channel, torch.stack([spatial, spatial], 4)[..., 0]),
    ):
        for moved in (x, shifted, x.contiguous(), torch.cat([x, x], 1)[:, 32:]):
            assert torch.equal(ddf(moved, *filters), exact)
    expanded = spatial[:1].expand(2, -1, -1, -1)
    assert torch.equal(ddf(x, channel, expanded), ddf(x, channel, expanded.contiguous()))


def test_tensors_whose_memory_does_not_hold_their_values(built):
    _, channel, spatial = make_inputs(2, 8, 6, 7)
    negated = torch.randn(2, 8, 6, 7, dtype=torch.complex64).conj().imag
    zero = torch._efficientzerotensor((2, 8, 6, 7))
    assert negated.is_neg()
    for x in (negated, zero):
        y, expected = ddf(x, channel, spatial), ddf(x.clone().resolve_neg(), channel, spatial)
        assert torch.equal(y, expected)
        grad_y = torch.randn(2, 8, 6, 7)
        for a, b in zip(
            torch.autograd.grad(y, (channel, spatial), grad_y),
            torch.autograd.grad(expected, (channel, spatial), grad_y),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("stride", "memory_format"), [(1, "channels_last"), (2, "contiguous")])
def test_gradcheck_with_whole_vectors(built, stride, memory_format):
    inputs = make_inputs(1, 9, 3, 4, stride=stride, dtype=torch.float64, memory_format=FORMATS[memory_format], heads=1)
    assert torch.autograd.gradcheck(lambda *tensors: ddf(*tensors, stride=stride), inputs)


def test_opcheck(built):
    for memory_format in FORMATS.values():
        inputs = make_inputs(2, 32, 5, 25, memory_format=memory_format)
        settings, tests = (3, 1, 1, True, 1), ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(torch.ops.ddfnet.ddf.default, (*inputs, *settings), test_utils=tests)
        arguments = (torch.randn_like(inputs[0]), *inputs, *settings, True, True, True)
        torch.library.opcheck(torch.ops.ddfnet.ddf_backward.default, arguments, test_utils=tests)


@pytest.mark.parametrize("case", [{}, {"stride": 2}, {"scale": 2}, {"filters": "spatial", "heads": 2}], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_same_bits_for_any_number_of_threads(built, threads, case, memory_format):
    inputs = make_inputs(8, 64, 48, 40, memory_format=FORMATS[memory_format], **case)  # work for several threads
    options = {key: case[key] for key in ("stride", "scale") if key in case}
    function = ddf_up if "scale" in case else ddf
    threads(1)
    once = evaluate(function, inputs, kernel_size=3, **options)
    for count in (1, 2, 3, 7):
        threads(count)
        for a, b in zip(evaluate(function, inputs, kernel_size=3, **options), once, strict=True):
            assert torch.equal(a, b)


class Filtered(Dataset):
    """Runs the operator where the samples are made: in DataLoader workers."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(2)
        return ddf(*self.inputs)


def test_workers_forked_after_threads_ran(built, threads):
    threads(3)
    inputs = make_inputs(8, 64, 40, 40, requires_grad=False)
    y = ddf(*inputs)
    loader = DataLoader(Filtered(inputs), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(filtered, y) for filtered in loader)


def test_the_threads_are_those_of_pytorch(built, threads):
    """A stand-in for OpenMP's entry, which runs the threads one after another, and one too few."""
    entry = native_call._parallel()
    assert sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info() or entry
    threads(3)
    library, seen = native._library(torch.float32), []
    inputs = make_inputs(8, 64, 40, 40, requires_grad=False)
    expected = ddf(*inputs)

    @ctypes.CFUNCTYPE(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def stand_in(work, team, count, flags):
        seen.append((count, flags))
        for _ in range(count - 1):
            work(team)

    try:
        library.use_parallel(stand_in)
        assert torch.equal(ddf(*inputs), expected)
        assert seen == [(3, 0)]
        threads(1)
        assert torch.equal(ddf(*inputs), expected)
        assert len(seen) == 1
        threads(3)
        library.use_parallel(None)
        assert torch.equal(ddf(*inputs), expected)  # with threads of its own
    finally:
        library.use_parallel(entry)


FORK = """
import os, threading, torch
from ddfnet.ops.ddf import ddf

torch.set_num_threads(3)
inputs = torch.randn(8, 64, 40, 40), torch.randn(8, 64, 3, 3), torch.randn(8, 9, 40, 40)
expected = ddf(*inputs)
children_done = threading.Event()

def work():
    while not children_done.is_set():
        ddf(*inputs)

busy = threading.Thread(target=work)
busy.start()  # forked in the middle of a call of another thread
for _ in range(5):
    child = os.fork()
    if child == 0:
        y = ddf(*inputs)
        torch.set_num_threads(1)  # the threads of PyTorch itself may hang here
        os._exit(0 if torch.equal(y, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
children_done.set()
busy.join()
"""


def test_forks_in_the_middle_of_a_call(built):
    subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, timeout=100, check=True)


FIRST_CALL_IN_CHILD = """
import os, sys, torch
from ddfnet.ops.ddf import ddf

torch.set_num_threads(2)
inputs = torch.randn(8, 64, 40, 40), torch.randn(8, 64, 3, 3), torch.randn(8, 9, 40, 40)
if sys.argv[1] == "other dtype":
    ddf(*inputs)  # loads the library of float32 alone
    inputs = [tensor.double() for tensor in inputs]
torch.randn(400_000).exp_()  # threads of PyTorch, which the child does not have
child = os.fork()
if child == 0:
    ddf(*inputs)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("before", ["nothing", "other dtype"])
def test_a_library_that_is_loaded_after_the_fork(built, before):
    subprocess.run([sys.executable, "-c", FIRST_CALL_IN_CHILD, before], cwd=ROOT, timeout=60, check=True)


def test_without_a_compiler_pytorch_computes_the_same(anew, monkeypatch, tmp_path):
    inputs = make_inputs(2, 16, requires_grad=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    y = ddf(*inputs)
    assert native.cpu_path() == (
        "DDF operators on the CPU: in PyTorch, several times slower than native code "
        "(no C compiler: none of cc, gcc, clang is on the PATH, and CC names none)"
    )
    torch.testing.assert_close(y, ddf(*[tensor.double() for tensor in inputs]).float())


def test_a_compiler_that_fails(anew, monkeypatch, tmp_path, caplog):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'native.c:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))
    ddf(*make_inputs(2, 16))
    assert native.cpu_path().endswith(f"({compiler} fails: native.c:1: error: no such thing)")
    assert len([record for record in caplog.records if "no such thing" in record.message]) == 1
    assert list((tmp_path / "cache" / "native").iterdir()) == []


def test_a_compiler_that_does_not_exist_is_not_replaced_by_another(anew, monkeypatch):
    monkeypatch.setenv("CC", "nvcc-of-the-moon -O2")
    assert native.cpu_path().endswith("(CC=nvcc-of-the-moon -O2 names no program on the PATH)")


def test_switched_off(anew, monkeypatch):
    monkeypatch.setenv("DDFNET_NATIVE", "0")
    assert native.cpu_path().endswith("several times slower than native code (DDFNET_NATIVE=0)")
    assert not native.is_usable(Arguments(*make_inputs(), 3, 1, 1, True, 1))


def test_the_sentence_for_native_code_and_for_the_compiler(built, monkeypatch):
    for compiled in (False, True):
        assert native.cpu_path(compiled=compiled) == "DDF operators on the CPU: native code"
    monkeypatch.setattr(native, "_library", lambda accumulator: "no compiler")
    assert native.cpu_path(compiled=True) == (
        "DDF operators on the CPU: in PyTorch, fused by torch.compile, several times slower than native code "
        "(no compiler)"
    )


SOURCE = "int answer(void) { return ANSWER; }\n"


@pytest.fixture
def source(built, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "small.c"
    path.write_text(SOURCE)
    return path


def test_a_library_is_compiled_once_for_each_source_and_flag(source, monkeypatch):
    compiled = []
    compile_it = native_build._compile
    monkeypatch.setattr(native_build, "_compile", lambda *a: (compiled.append(a[2]), compile_it(*a)))
    for answer, text in (("4", SOURCE), ("4", SOURCE), ("5", SOURCE), ("4", SOURCE + "/* changed */")):
        source.write_text(text)
        assert native_build.load_library([source], f"ANSWER={answer}").answer() == int(answer)
    assert compiled == [("ANSWER=4",), ("ANSWER=5",), ("ANSWER=4",)]
    names = sorted(path.suffix for path in native_build.cache_folder().iterdir())
    assert names == [".so"] * 3  # nothing else is left behind


def test_a_damaged_library_is_compiled_again(source, tmp_path, monkeypatch):
    native_build.load_library([source], "ANSWER=7")
    (library,) = native_build.cache_folder().iterdir()
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "damaged"))
    damaged = native_build.cache_folder() / library.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(library.read_bytes()[:1000])
    assert native_build.load_library([source], "ANSWER=7").answer() == 7
    assert damaged.read_bytes() == library.read_bytes()


def test_options_in_the_name_of_the_compiler(source, monkeypatch):
    monkeypatch.setenv("CC", "cc -DANSWER=6")
    assert native_build.load_library([source]).answer() == 6


@pytest.mark.skipif(os.name == "nt", reason="permissions of Unix")
@pytest.mark.parametrize("open_to_all", ["library", "folder"])
def test_a_library_that_others_could_have_put_there_is_not_loaded(source, monkeypatch, open_to_all):
    native_build.load_library([source], "ANSWER=7")
    (library,) = native_build.cache_folder().iterdir()
    (library if open_to_all == "library" else library.parent).chmod(0o777)
    compiled = []
    compile_it = native_build._compile
    monkeypatch.setattr(native_build, "_compile", lambda *a: (compiled.append(a[2]), compile_it(*a)))
    assert native_build.load_library([source], "ANSWER=7").answer() == 7
    assert compiled == [("ANSWER=7",)]


def test_a_cache_that_cannot_be_written(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "file"))
    assert native_build.load_library([source], "ANSWER=8").answer() == 8


BUILD = """
import runpy, sys, time
from pathlib import Path
load_library = runpy.run_path(sys.argv[1])["load_library"]  # importing PyTorch would take longer than what is tested
time.sleep(max(0, float(sys.argv[3]) - time.time()))
assert load_library([Path(sys.argv[2])], "ANSWER=9").answer() == 9
"""


def test_several_processes_build_at_once(source):
    command = [sys.executable, "-c", BUILD, native_build.__file__, str(source), str(time.time() + 1.5)]
    processes = [subprocess.Popen(command, env=dict(os.environ)) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert [path.suffix for path in native_build.cache_folder().iterdir()] == [".so"]


def test_tracing_never_meets_native_code(built):
    inputs = make_inputs(2, 16, requires_grad=False)
    assert native.is_usable(Arguments(*inputs, 3, 1, 1, True, 1))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in inputs]
    assert not native.is_usable(Arguments(*fake, 3, 1, 1, True, 1))
    assert not native.is_usable(Arguments(*(tensor.to("meta") for tensor in inputs), 3, 1, 1, True, 1))
    with FunctionalTensorMode():
        wrapped = [FunctionalTensor.to_functional(tensor) for tensor in inputs]
        assert not native.is_usable(Arguments(*wrapped, 3, 1, 1, True, 1))


def test_gradients_of_a_frozen_part(built):
    """Each subset of gradients is that of the whole, bit for bit."""
    inputs = make_inputs(2, 32, 7, 9, memory_format=torch.channels_last, requires_grad=False)
    args, grad_y = Arguments(*inputs, 3, 1, 1, True, 1), torch.randn_like(inputs[0])
    whole = native.backward(grad_y, args, Needed(True, True, True))
    for bits in range(1, 8):
        needed = Needed(*(bool(bits & 1 << i) for i in range(3)))
        for grad, full, need in zip(native.backward(grad_y, args, needed), whole, needed, strict=True):
            assert torch.equal(grad, full) if need else grad.numel() == 0
    assert len(present(whole)) == 3
