"""The GPU suite and its command on a machine without a GPU: clear refusals, a suite that collects and skips."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "gpu_check.sh"
# Hides every GPU, so that these tests say the same on a machine that has one.
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key != "DDFNET_GPU_TESTS_DEVICE"},
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "PYTHON": sys.executable,
}


def gpu_check(*arguments, cwd=ROOT, **environment):
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False
    )


def run_suite(*options):
    """Without pydantic, which reads configurations and is no part of the operator: a bare GPU machine lacks it."""
    program = "import sys, pytest; sys.modules['pydantic'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "tests/gpu", "-m", "gpu", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_the_script_is_valid_bash():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [(), ("--help",), ("a", "b"), ("",)])
def test_wrong_arguments_are_refused_with_the_usage(arguments, tmp_path):
    result = gpu_check(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "usage: bash scripts/gpu_check.sh OUTDIR\n"
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_nothing_is_run(tmp_path):
    result = gpu_check(tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr == "gpu_check: no CUDA device found; nothing was run\n"
    assert not (tmp_path / "out").exists()


def test_an_interpreter_without_torch_is_named(tmp_path):
    result = gpu_check(tmp_path / "out", PYTHON=str(tmp_path / "no-python"))
    assert result.returncode == 2
    assert "no-python cannot import torch" in result.stderr


def test_the_suite_collects_and_every_test_is_marked():
    marked, everything = run_suite("--collect-only"), run_suite("--collect-only", "-m", "")
    assert marked.returncode == 0, marked.stdout + marked.stderr

    def tests(result):
        return {line for line in result.stdout.splitlines() if line.startswith("tests/gpu/")}

    assert len(tests(marked)) >= 150
    assert tests(marked) == tests(everything)
    assert {name.split("::")[0] for name in tests(marked)} == {f"tests/gpu/{p.name}" for p in files()}


def test_every_test_skips_with_a_reason():
    result = run_suite("-rs")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" not in result.stdout
    assert "failed" not in result.stdout
    assert "needs a CUDA device" in result.stdout


def files():
    return (ROOT / "tests" / "gpu").glob("test_*.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the suite itself runs there")
@pytest.mark.parametrize("name", ["tests/gpu/test_large_offsets.py"])
def test_test_bodies_run_on_the_cpu(name):
    """A mistake in a test would otherwise show only on the next GPU."""
    command = [sys.executable, "-m", "pytest", name, "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    environment = {**ENVIRONMENT, "DDFNET_GPU_TESTS_DEVICE": "cpu"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
