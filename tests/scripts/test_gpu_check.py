"""The GPU suite and its command on a machine without a GPU: clear refusals, a suite that collects and skips."""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import time
from unittest import mock

import pytest
import torch

from scripts.benchmarks import model, op
from scripts.dev import gpu_check as checks
from tests.conftest import ROOT
from tests.processes import launch_forked

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


SUITE = """
import sys, pytest
sys.modules["pydantic"] = None

class Collected:
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            print("collected", item.get_closest_marker("gpu") is not None, item.nodeid)

sys.exit(pytest.main(["tests/gpu", "-m", "", "-q", "-rs", "-p", "no:cacheprovider"], plugins=[Collected()]))
"""


@pytest.fixture(scope="module")
def suite():
    """A run of all tests of the suite, marked or not.

    Without pydantic, which reads configurations and is no part of the operator: a bare GPU machine lacks it.
    """
    command = [sys.executable, "-c", SUITE]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_the_script_is_valid_bash():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [(), ("--help",), ("a", "b"), ("a", "quick", "c"), ("",)])
def test_wrong_arguments_are_refused_with_the_usage(arguments, tmp_path):
    result = gpu_check(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "usage: bash scripts/gpu_check.sh OUTDIR [full|quick]\n"
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


def rehearse(parts, out, monkeypatch):
    """Runs parts as if there were a GPU; exit code and result by part."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(checks, "environment", dict)
    monkeypatch.setattr(checks, "START", time.monotonic())
    monkeypatch.setattr(checks, "PARTS", parts)
    monkeypatch.setattr(checks, "PROFILES", {"full": (400, list(parts))})
    monkeypatch.chdir(ROOT)
    with mock.patch.dict(os.environ):
        code = checks.main(out)
    return code, {row["part"]: row["result"] for row in json.loads((out / "summary.json").read_text())["parts"]}


def test_parts_are_cut_and_share_their_caches(tmp_path, monkeypatch):
    suite, out = tmp_path / "test_suite.py", tmp_path / "out"
    suite.write_text("def test_good(): pass\ndef test_other(): pass\n")
    write = "import os, pathlib, sys; folder = pathlib.Path(sys.argv[2]); folder.mkdir(); "
    write += "(folder / 'benchmark_x.md').write_text(os.environ['TRITON_CACHE_DIR']); "
    parts = {
        "tests": (60, f"-m pytest -q -p no:cacheprovider {suite}"),
        "first": (60, f'-c "{write}"', f'-c "{write}"'),  # two at once, each into a folder of its own
        "slow": (5, f'-c "{write} import time; time.sleep(60)"'),
    }
    code, results = rehearse(parts, out, monkeypatch)
    assert results == {"tests": "passed", "first": "passed", "slow": "cut"}
    assert code == 0  # cut is not failed
    files = ["benchmarks.tar.gz", "gpu_check.log", "summary.json", "summary.md", "tests.xml"]
    assert sorted(path.name for path in out.iterdir()) == files
    with tarfile.open(out / "benchmarks.tar.gz") as archive:
        pages = [archive.extractfile(f"benchmarks/{name}/benchmark_x.md").read() for name in ("first", "slow")]
    assert pages[0] == pages[1]
    summary = (out / "summary.md").read_text()
    assert "2 tests, 0 failures, 0 errors, 0 skipped" in summary
    assert summary.count(pages[0].decode()) == 2
    assert "2 passed" in (out / "gpu_check.log").read_text()


def test_failures_are_named_and_do_not_stop_the_others(tmp_path, monkeypatch):
    suite = tmp_path / "test_suite.py"
    suite.write_text("def test_bad(): assert 1 == 2, 'as expected'\n")
    parts = {"tests": (60, f"-m pytest -q -p no:cacheprovider {suite}"), "wrong": (60, "-c 1/0"), "good": (60, "-c 1")}
    code, results = rehearse({**parts, "late": (0, "-c 1")}, tmp_path / "out", monkeypatch)
    assert code == 1
    assert results == {"tests": "failed", "wrong": "failed (1)", "good": "passed", "late": "not run"}
    assert "test_suite::test_bad: AssertionError: as expected" in (tmp_path / "out" / "summary.md").read_text()


@pytest.mark.parametrize("name", list(checks.PARTS))
def test_the_commands_of_the_parts_are_accepted(name, tmp_path):
    for text in checks.PARTS[name][1:]:
        accept([*shlex.split(text), "--output", str(tmp_path / "out")])


def accept(command):
    if "op.py" in command[0]:
        arguments = op.make_parser().parse_args(command[1:])
        arguments.dtype = "bf16"
        assert op.make_cases(arguments)
        assert set((arguments.only or "ddf").split(",")) <= set(op.DDF)
    elif "model.py" in command[0]:
        arguments, _ = model.parse_arguments([*command[1:], "--device", "cpu"])
        assert arguments.keep_caches
    else:
        assert command[0] == "-m" or (ROOT / command[0]).exists()


def test_profiles_have_known_parts_and_the_tests():
    for _, names in checks.PROFILES.values():
        assert set(names) <= set(checks.PARTS)
        assert "tests" in names


def test_the_suite_collects_and_every_test_is_marked(suite):
    assert suite.returncode == 0, suite.stdout + suite.stderr
    lines = [line.split(" ", 2) for line in suite.stdout.splitlines() if line.startswith("collected ")]
    assert len(lines) >= 150
    assert [name for _, marked, name in lines if marked != "True"] == []
    needs_config = {"tests/gpu/test_device_policy.py"}  # skipped here, where pydantic is missing
    assert {name.split("::")[0] for *_, name in lines} | needs_config == {f"tests/gpu/{p.name}" for p in files()}


def test_every_test_skips_with_a_reason(suite):
    assert suite.returncode == 0, suite.stdout + suite.stderr
    summary = suite.stdout.splitlines()[-1]
    assert re.fullmatch(r"=*\s*\d+ skipped in .*", summary)  # neither passed nor failed
    assert "needs a CUDA device" in suite.stdout


def files():
    return (ROOT / "tests" / "gpu").glob("test_*.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the suite itself runs there")
@pytest.mark.parametrize("name", ["tests/gpu/test_large_offsets.py"])
def test_test_bodies_run_on_the_cpu(name):
    """A mistake in a test would otherwise show only on the next GPU."""
    code = f"import sys, pytest; sys.exit(pytest.main([{name!r}, '-m', 'gpu', '-q', '-p', 'no:cacheprovider']))"
    variables = {"CUDA_VISIBLE_DEVICES": "", "DDFNET_GPU_TESTS_DEVICE": "cpu"}
    result = launch_forked("-c", code, variables=variables)
    assert result.returncode == 0, result.stdout + result.stderr
