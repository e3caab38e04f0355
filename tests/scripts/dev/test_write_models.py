"""The table of models: current, and filled from one run of the benchmark."""

import json

import pytest

import ddfnet
from scripts.benchmarks import models as benchmark
from scripts.dev import write_models
from tests.conftest import ROOT


def test_the_page_is_current():
    assert (ROOT / "docs/reference/models.md").read_text() == write_models.page()
    assert set(ddfnet.list_models()) < set(write_models.listed_models())


def test_a_run_of_the_benchmark_fills_the_column(tmp_path, capsys):
    names = ["resnet14_32px", "ddf_mul_resnet14_32px"]
    arguments = ["--models", *names, "--batch", "2", "--rounds", "3", "--budget", "0", "--output", str(tmp_path)]
    assert benchmark.main(arguments) == 0
    report = json.loads((tmp_path / "models_cpu.json").read_text())
    assert [row["model"] for row in report["rows"]] == names
    page = write_models.page(tmp_path)
    for row in report["rows"]:
        assert row["rounds"] == 3
        assert row["images_per_second"] == 2000 / row["wall_ms"]
        line = next(line for line in page.splitlines() if line.startswith(f"| {row['model']} |"))
        shown = float(line.rsplit("|", 2)[1].replace(",", ""))  # 1,107, 56, 7.8
        assert shown == pytest.approx(row["images_per_second"], rel=0.06)
    assert all(name in capsys.readouterr().out for name in names[:1])
    assert "median of n = 3 rounds" in page
    assert "batch 2, float32" in page


def test_outcomes_of_timms_tests_are_counted_and_what_was_not_run_is_named(tmp_path):
    names = sorted(ddfnet.list_models())
    tests = {
        "test_model_forward": dict.fromkeys(names[1:], "passed"),
        "test_model_forward_torchscript": {names[1]: "refused", names[2]: "failed", names[3]: "passed"},
    }
    record = {"timm": "1.2.3", "torch": "9.9", "date": "2026-11-28", "tests": tests}
    (tmp_path / "timm_tests.json").write_text(json.dumps(record))
    page = write_models.page(tmp_path)
    assert f"| test_model_forward | {len(names) - 1} | 0 | 0 | 0 |" in page
    assert "| test_model_forward_torchscript | 1 | 1 | 0 | 1 |" in page
    assert f"| all | {len(names)} | 1 | 0 | 1 |" in page
    assert f"timm 1.2.3, PyTorch 9.9, on a CPU, 2026-11-28: {len(names) - 1} models." in page
    assert f"Not run: {names[0]}. Failed: test_model_forward_torchscript of {names[2]}." in page


def test_all_of_timms_tests_passed_or_were_refused():
    """The committed outcomes: TorchScript alone is refused, nothing failed, and no model is missing."""
    tests = json.loads((ROOT / "docs/results/timm_tests.json").read_text())["tests"]
    for test, outcomes in tests.items():
        allowed = {"passed", "skipped", "refused"} if "torchscript" in test else {"passed", "skipped"}
        assert set(outcomes.values()) <= allowed, test
    for test in ("test_model_forward", "test_model_backward"):
        assert set(tests[test]) == set(ddfnet.list_models())
