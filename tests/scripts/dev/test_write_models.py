"""The table of models: current, and filled from one run of the benchmark."""

import json

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
        assert line.endswith(f"| {row['images_per_second']:.3g} |")
    assert all(name in capsys.readouterr().out for name in names[:1])
    assert "median of n = 3 rounds" in page
    assert "batch 2, float32" in page
