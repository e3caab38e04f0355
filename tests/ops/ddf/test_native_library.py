"""How the native code is compiled and found, and what happens where it cannot be built."""

import os
import subprocess
import sys
import time
from functools import cache

import pytest
import torch
from ddf_cases import make_inputs

from ddfnet.ops import native_build
from ddfnet.ops.ddf import ddf, native
from ddfnet.ops.ddf.arguments import Arguments


@pytest.fixture
def anew(monkeypatch):
    """As in a new process: the library is looked for again."""
    monkeypatch.setattr(native, "_library", cache(native._library.__wrapped__))


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
