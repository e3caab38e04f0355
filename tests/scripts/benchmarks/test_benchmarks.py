"""The two benchmark scripts on tiny shapes: true floors, complete reports, failures as rows. Nothing asserts speed."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.benchmarks import common, measure, model, op, op_cases
from tests.conftest import ROOT
from tests.processes import launch_forked

CPU = torch.device("cpu")
QUICK = ("--device", "cpu", "--skip-compiled", "--budget", "0.01")


@pytest.fixture(autouse=True)
def _restore_settings(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)


def run(script, *arguments, cwd=ROOT, **environment):
    if not environment:
        return launch_forked(f"scripts/benchmarks/{script}", *arguments, cwd=cwd)
    command = [sys.executable, str(ROOT / "scripts" / "benchmarks" / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def report_of(folder, name):
    """The JSON report of a folder that holds all three files, and no others."""
    assert {path.name for path in folder.iterdir() if path.suffix != ".gz"} >= {f"{name}.json", f"{name}.md"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return json.loads((folder / f"{name}.json").read_text())


def assert_an_image(path):
    pytest.importorskip("matplotlib")
    assert np.asarray(Image.open(path).convert("L")).std() > 10


def assert_refused(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# --- the operator -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def op_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("op")
    options = ("--shapes", "1,8,8,8", "--shapes", "2,8,9,9,2", *QUICK, "--threads", 1, "--output", folder / "report")
    return run("op.py", *options, cwd=folder), folder / "report"


def test_the_report_is_complete(op_run):
    result, folder = op_run
    assert result.returncode == 0, result.stderr
    report = report_of(folder, "benchmark_op")
    names = ["ddf", "unfold", "depthwise conv", "dense conv"]
    shapes = ["1,8,8,8", "2,8,9,9,2"]
    assert [(r["shape"], r["implementation"]) for r in report["rows"]] == [(s, n) for s in shapes for n in names]
    for row in report["rows"]:
        assert "failed" not in row
        for key in ("forward", "forward_backward"):
            times = row[key]
            assert 0 < times["min_ms"] <= times["p20_ms"] <= times["median_ms"] <= times["p80_ms"]
            assert times["repeats"] >= 3
            assert row[f"first_{key}_ms"] > 0
            assert row[f"{key}_mib"] > 0
            assert (row[f"{key}_resident_mib"] is None) == (sys.platform != "linux")
    own, unfold = report["rows"][:2]
    assert unfold["error"] < 1e-5
    expected = unfold["forward_backward"]["median_ms"] / own["forward_backward"]["median_ms"]
    assert unfold["forward_backward_to_ours"] == pytest.approx(expected)
    environment = report["environment"]
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == 1
    assert "--shapes 1,8,8,8" in environment["command"]
    assert report["settings"]["dtype"] == "fp32"
    assert_an_image(folder / "benchmark_op.png")


def test_the_floor_is_that_of_the_bytes(op_run):
    """float32 tensors of batch 1, 8 channels, 8 x 8 pixels; and of batch 2, 9 x 9, stride 2, hence 5 x 5."""
    report = report_of(op_run[1], "benchmark_op")
    for index, x, channel_filter, spatial_filter, y in (
        (0, 4 * 8 * 64, 4 * 8 * 9, 4 * 9 * 64, 4 * 8 * 64),
        (4, 4 * 2 * 8 * 81, 4 * 2 * 8 * 9, 4 * 2 * 9 * 25, 4 * 2 * 8 * 25),
    ):
        row = report["rows"][index]
        forward = x + channel_filter + spatial_filter + y
        backward = (y + x + channel_filter + spatial_filter) + (x + channel_filter + spatial_filter)
        assert row["floor_forward_bytes"] == forward
        assert row["floor_forward_backward_bytes"] == forward + backward
        milliseconds = 1e3 * forward / report["copy_bytes_per_second"]
        assert row["floor_forward_ms"] == pytest.approx(milliseconds)
        assert row["floor_forward_percent"] == pytest.approx(100 * milliseconds / row["forward"]["median_ms"])


def test_the_table_is_markdown_of_120_columns(op_run):
    result, folder = op_run
    table = [line for line in (folder / "benchmark_op.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + 8
    assert len({line.count("|") for line in table}) == 1
    assert max(map(len, result.stdout.splitlines()[1:-1])) <= 120
    assert all(line in result.stdout for line in table)
    assert "First calls of ddf" in result.stdout


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_formulations_agree(dtype, combine, tmp_path):
    """In each precision and kernel size the compared formulation is the same function: no row fails."""
    options = ("--dtype", dtype, "--combine", combine, "--kernel-size", "5", "--only", "unfold,dense conv")
    options = (*options, "--memory-format", "contiguous", "--shapes", "2,6,7,9", "--output", str(tmp_path))
    assert op.main([*QUICK, *options]) == 0
    unfold, dense = report_of(tmp_path, "benchmark_op")["rows"]
    assert unfold["error"] < op.MAX_ERROR
    assert "failed" not in dense
    assert "forward_to_ours" not in unfold  # ddf was not timed


def test_the_layers_of_resnet50(tmp_path):
    options = ("--batch", "1", "--only", "ddf", "--output", str(tmp_path))
    assert op.main([*QUICK, *options]) == 0
    report = report_of(tmp_path, "benchmark_op")
    assert [row["count"] for row in report["rows"]] == [3, 1, 3, 1, 5, 1, 2]
    total = sum(row["count"] * row["forward"]["median_ms"] for row in report["rows"])
    assert report["totals"]["ddf"]["forward_ms"] == pytest.approx(total)


def test_failures_are_rows(tmp_path, monkeypatch, capsys):
    def failing(*_):
        raise RuntimeError("no | such\nkernel")

    right = op_cases.unfold_ddf
    monkeypatch.setattr(op_cases, "unfold_ddf", lambda *a, **k: 1.05 * right(*a, **k))
    monkeypatch.setitem(op.DDF, "dense conv", op_cases.Implementation(failing, exact=False))
    assert op.main([*QUICK, "--shapes", "1,8,8,8", "--output", str(tmp_path)]) == 0
    rows = {row["implementation"]: row for row in report_of(tmp_path, "benchmark_op")["rows"]}
    assert rows["unfold"]["failed"].startswith("ValueError: wrong result: forward differs from ddf by 0.05")
    assert "forward" not in rows["unfold"]
    assert rows["dense conv"]["failed"] == "RuntimeError: no | such"
    assert "FAILED: RuntimeError: no / such" in capsys.readouterr().out
    assert rows["depthwise conv"]["forward"]["median_ms"] > 0


def test_a_failure_of_ddf_is_the_exit_code(monkeypatch, capsys):
    def failing(*_, **__):
        raise RuntimeError("launch failed")

    monkeypatch.setattr(op_cases, "ddf", failing)
    assert op.main([*QUICK, "--shapes", "1,8,8,8", "--only", "unfold"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: RuntimeError: launch failed" in out
    assert out.count("| 1,8,8,8 ") == 2  # unfold is measured all the same


def test_a_shape_too_large_is_a_row(capsys):
    options = ("--shapes", "100000,1024,512,512", "--shapes", "1,8,8,8", "--only", "ddf,unfold")
    assert op.main([*QUICK, *options]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| 1000", "| 1,8"))]
    assert ["FAILED" in line for line in lines] == [True, True, False, False]


def test_an_error_of_the_compiler_is_a_row(tmp_path):
    options = ("--device", "cpu", "--shapes", "1,8,8,8", "--only", "ddf,ddf compiled", "--budget", 0.01)
    result = run("op.py", *options, "--output", tmp_path, CXX="/nonexistent/compiler", DDFNET_NATIVE="0")
    assert result.returncode == 0, result.stderr
    own, compiled = report_of(tmp_path, "benchmark_op")["rows"]
    assert own["forward"]["median_ms"] > 0
    assert "failed" in compiled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes", "resnet51"], "give resnet50, table2"),
        (["--shapes", "1,8,8"], "B,C,H,W[,stride]"),
        (["--shapes", "1,8,0,8"], "above zero"),
        (["--only", "unfolded"], "choose from ddf, ddf compiled"),
        (["--kernel-size", "4"], "must be odd"),
        (["--budget", "0"], "above zero"),
        (["--batch", "0"], "at least 1"),
        (["--threads", "0"], "at least 1"),
        (["--up", "--shapes", "resnet50"], "does not go with the upsampling operator"),
        (["--up", "--shapes", "1,8,8,8,2"], "does not go with the upsampling operator"),
        (["--up", "--scale", "1"], "at least 2"),
        (["--output", "/proc/none"], "/proc/none"),
    ],
)
def test_bad_arguments_of_the_operator(options, message, capsys):
    assert_refused(op, ["--device", "cpu", *options], message, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("script", [op, model])
def test_no_cuda_device(script, capsys):
    assert_refused(script, ["--device", "cuda"], "finds no CUDA device", capsys)


@pytest.mark.parametrize("scale", ["2", "3"])
def test_upsampling(scale, tmp_path):
    options = ("--up", "--scale", scale, "--shapes", "1,8,5,6", "--output", str(tmp_path))
    assert op.main([*QUICK, *options]) == 0
    rows = report_of(tmp_path, "benchmark_op")["rows"]
    assert [row["implementation"] for row in rows] == [n for n in op.DDF_UP if "compiled" not in n]
    assert not [row for row in rows if "failed" in row]
    s = int(scale)
    x, channel_filter, spatial_filter, y = 4 * 8 * 30, 4 * s * s * 72, 4 * s * s * 9 * 30, 4 * s * s * 8 * 30
    assert rows[0]["floor_forward_bytes"] == x + channel_filter + spatial_filter + y


# --- the models -------------------------------------------------------------------------------------------------------

SMALL = ("--device", "cpu", "--batch", "2", "--image-size", "32", "--steps", "2", "--warmup", "1")


@pytest.fixture(scope="module")
def model_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    models = ("--models", "resnet10t", "vit_tiny_patch16_224", "ddf_mul_resnet14_32px", "--baseline", "resnet10t")
    options = (*SMALL, *models, "--modes", "eager", "--torch-profile", 1, "--output", folder / "report")
    return run("model.py", *options, cwd=folder), folder / "report"


def test_models(model_run):
    result, folder = model_run
    assert result.returncode == 0, result.stderr
    report = report_of(folder, "benchmark_model")
    baseline, wrong_size, own = report["rows"]
    assert "failed" in wrong_size  # this model takes 224 pixels only
    assert own["parameters"] > 1e5
    for row in (baseline, own):
        for part in ("train", "inference"):
            figures = row[part]
            assert figures["repeats"] == 2
            assert figures["images_per_second"] == pytest.approx(2e3 / figures["median_ms"])
            expected = figures["images_per_second"] / baseline[part]["images_per_second"]
            assert figures["ratio"] == pytest.approx(expected)
            assert figures["peak_mib"] > 1 if sys.platform == "linux" else figures["peak_mib"] is None
    assert report["settings"]["image_size"] == 32
    assert_an_image(folder / "benchmark_model.png")


def test_profile_of_models(model_run):
    result, folder = model_run
    trace = json.loads((folder / "trace_ddf_mul_resnet14_32px_eager.json").read_text())
    assert any("ddfnet::ddf" in event.get("name", "") for event in trace["traceEvents"])
    kernels = report_of(folder, "benchmark_model")["rows"][2]["kernels"]
    assert len(kernels) == 15
    times = [kernel["ms"] for kernel in kernels]
    assert times == sorted(times, reverse=True)
    assert kernels[0]["name"] in result.stdout
    in_all = report_of(folder, "benchmark_model")["rows"][2]["train"]["profile"]
    assert in_all["device_ms"] >= sum(times)
    assert in_all["launches"] >= sum(kernel["calls"] for kernel in kernels)


def test_table_of_models(model_run):
    result, folder = model_run
    table = [line for line in (folder / "benchmark_model.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert "FAILED" in table[3]
    assert {len(line) for line in table} == {len(table[0])}
    assert len(table[0]) <= 120
    assert all(line in result.stdout for line in table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "resnet5O"], "timm knows no such model"),
        (["--models", "resnet50:drop_rate"], "expected name:option=value"),
        (["--steps", "0"], "--steps: must be at least 1"),
        (["--image-size", "0"], "--image-size: must be at least 1"),
        (["--torch-profile", "2"], "with --output"),
        (["--output", "/proc/none"], "/proc/none"),
    ],
)
def test_bad_arguments_of_the_models(options, message, capsys):
    assert_refused(model, ["--device", "cpu", *options], message, capsys)


def test_modes_of_cuda_alone_are_left_out(capsys):
    arguments, _ = model.parse_arguments(["--device", "cpu", "--modes", "eager", "graph", "reduced"])
    assert arguments.modes == ["eager"]
    assert capsys.readouterr().out == "left out, as they need CUDA: graph, reduced\n"


def test_a_graph_records_the_fourth_step(monkeypatch):
    """The order of warming up, recording and replaying, with a CUDA that is not there."""
    events = []

    class Stream(contextlib.nullcontext):
        def wait_stream(self, other):
            events.append("wait")

    class Graph:
        def replay(self):
            events.append("replay")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: events.append("record") or contextlib.nullcontext())
    replay = model.graphed(lambda: events.append("step"))
    replay()
    assert events == ["wait", "step", "step", "step", "wait", "record", "step", "replay"]


def test_options_of_a_model():
    assert model.parse_model("resnet50") == ("resnet50", {})
    assert model.parse_model("a:b=none,c=0.5,d=true") == ("a", {"b": "none", "c": 0.5, "d": True})


# --- common parts -----------------------------------------------------------------------------------------------------


def test_memory_of_a_call_is_that_of_its_tensors():
    def call():  # 64 MiB, freed; then 16 MiB, returned
        torch.ones(64 * 2**18)
        return torch.ones(16 * 2**18)

    tensors, resident = measure.call_memory(call, CPU)
    assert tensors == 64
    if sys.platform == "linux":
        assert 60 < resident < 90


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_peak_memory_sees_what_is_freed_again():
    before = measure.start_memory(CPU)
    torch.ones(64 * 2**18)  # 64 MiB, freed at once
    assert 60 < measure.peak_memory(CPU, before) < 72
    before = measure.start_memory(CPU)
    assert measure.peak_memory(CPU, before) < 8


def test_numbers_are_short():
    values = (None, 0.0, 0.00123, 0.0999, 1.0, 12.345, 1234.5, 1e7)
    written = ["-", "0", "0.0012", "0.0999", "1.00", "12.3", "1,234", "10,000,000"]
    assert [common.number(value) for value in values] == written
    assert common.number(0.0999, decimals=1) == "0.1"


def test_caches_are_given_back(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/a")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with measure.fresh_compiler_caches():
        assert os.environ["TRITON_CACHE_DIR"] != "/a"
        assert "TORCHINDUCTOR_CACHE_DIR" in os.environ
    assert os.environ["TRITON_CACHE_DIR"] == "/a"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_pydantic_is_not_needed(tmp_path):
    """The operator and the models are measured where only what they need is installed."""
    code = f"import sys; sys.modules['pydantic'] = None; sys.path.insert(0, {str(ROOT)!r}); "
    command = [sys.executable, "-c", code + "from scripts.benchmarks import model, op"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
