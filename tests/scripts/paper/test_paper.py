"""docs/reference/paper.md is current, measured runs get in, and the small-scale study reports the runs it made."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest

from scripts.paper import small_study, small_study_report, write_docs
from tests.conftest import ROOT
from tests.processes import launch_forked

STUDY = """
base: {base}
augment: {{hflip: 0.0}}
model: {{name: ddf_mul_resnet14_32px, kwargs: {{stem_stride: 2}}}}
data: {{input: {{size: 16}}}}
optim: {{lr: 1e-3}}
schedule: {{warmup_epochs: 0}}
train: {{epochs: 1, batch_size: 8, device_batch_size: 8}}
run: {{device: cpu}}
"""


@pytest.fixture(scope="module")
def page():
    return write_docs.page()


def test_the_page_is_current(page):
    assert (ROOT / "docs/reference/paper.md").read_text() == page


def test_what_nobody_measured_is_called_so(page):
    rows = [line for line in page.splitlines() if line.startswith("| ") and "../configs/" in line]
    configs = re.findall(r"\]\(../../configs/(\S+)\)", "\n".join(rows))
    recorded = sum(write_docs.result_path(config, write_docs.RESULTS).exists() for config in configs)
    assert len(rows) > 40
    assert sum(line.endswith("| not measured |") for line in rows) == len(rows) - recorded


def report(**changes):
    environment = {"gpus": ["GPU A", "GPU A"]}
    values = {"model": "ddf_mul_resnet50", "model_kwargs": {"normalization": "sigmoid"}}
    values["preprocessing"] = {"input_size": 224, "crop_pct": 0.875}
    values |= {"top1": 79.123, "top5": 94.5, "n": 50_000, "date": "2026-01-02T03:04:05"}
    return {**values, "environment": environment, **changes}


def test_a_measured_run_gets_into_its_row(tmp_path):
    path = write_docs.result_path("ablations/sigmoid.yaml", tmp_path)
    assert path.name == "ablations-sigmoid.json"
    assert write_docs.measured("ablations/sigmoid.yaml", tmp_path) == "not measured"
    path.write_text(json.dumps(report()))
    text = write_docs.measured("ablations/sigmoid.yaml", tmp_path)
    assert text == "79.12 / 94.50 (GPU A, 2026-01-02, [report](../results/ablations-sigmoid.json))"
    path.write_text(json.dumps(report(n=1000, environment={"gpus": []})))
    assert "of 1,000 images, not ImageNet's 50,000 (CPU," in write_docs.measured("ablations/sigmoid.yaml", tmp_path)
    for change, message in (
        ({"model": "resnet50"}, "the model resnet50, but configs/ablations/sigmoid"),
        ({"model_kwargs": {}}, "the model arguments {}, but"),
        ({"preprocessing": {"input_size": 288, "crop_pct": 0.875}}, "the input size 288, but"),
        ({"tta": True}, "the test-time augmentation True, but"),
    ):
        path.write_text(json.dumps(report(**change)))
        with pytest.raises(ValueError, match=re.escape(message)):
            write_docs.measured("ablations/sigmoid.yaml", tmp_path)


@pytest.fixture(scope="module")
def _forked_runs():
    """The study's processes without their imports."""

    def run(command, *, env, **options):
        assert command[0] == sys.executable
        assert options == {"capture_output": True, "text": True, "check": False}
        return launch_forked(*command[1:], variables=env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_study, "subprocess", SimpleNamespace(run=run))
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory, image_tree, _forked_runs):
    """Two variants, two seeds, one epoch; and the arguments that ran it."""
    folder = tmp_path_factory.mktemp("study")
    config = folder / "tiny.yaml"
    config.write_text(STUDY.format(base=ROOT / "configs/study/base.yaml"))
    arguments = ["--data", image_tree, "--config", config, "--images-per-class", 4, "--seeds", 2, "--jobs", 2]
    arguments += ["--variants", "dense", "ddf", "--runs", folder / "runs", "--output", folder / "out" / "study"]
    arguments = [str(argument) for argument in arguments]
    small_study.main(arguments)
    (runs,) = (folder / "runs").iterdir()
    return folder, arguments, runs


def test_the_study_reports_the_runs_it_made(study):
    folder, _, runs = study
    record = json.loads((folder / "out/study.json").read_text())
    assert record["held_out"] == 25
    assert record["images_per_epoch"] == 16  # 20 images, two steps of 8
    assert record["missing"] == []
    for variant in ("dense", "ddf"):
        for seed in (0, 1):
            lines = (runs / f"tiny_{variant}_seed{seed}/metrics.jsonl").read_text().splitlines()
            assert record["top1"][variant][str(seed)] == json.loads(lines[-1])["top1"]
            trained = [line for line in map(json.loads, lines) if line["kind"] == "train"]
            assert {line["step"] for line in trained} <= {1, 2}  # one epoch, so all of them count
            mean = sum(line["loss"] for line in trained) / len(trained)
            assert record["train_loss"][variant][str(seed)] == pytest.approx(mean)
    page = (folder / "out/study.md").read_text()
    dense, ddf = (list(record["top1"][name].values()) for name in ("dense", "ddf"))
    assert f"| {sum(ddf) / 2:.2f} |" in page
    differences = [b - a for a, b in zip(dense, ddf, strict=True)]
    agree = sum(difference > 0 for difference in differences)
    claim = f"| both (DDF) > dense 3x3 convolution | +1.9 | {sum(differences) / 2:+.2f} | {agree} of 2 |"
    assert claim in page
    assert (folder / "out/study.png").stat().st_size > 10_000


def test_the_study_resumes_where_it_stopped(study, capsys):
    folder, arguments, runs = study
    before = (runs / "tiny_ddf_seed0/last.pt").stat().st_mtime_ns
    (runs / "tiny_dense_seed1/metrics.jsonl").unlink()
    small_study.main([*arguments, "--report-only"])
    assert json.loads((folder / "out/study.json").read_text())["missing"] == ["('dense', 1)"]
    shutil.rmtree(runs / "tiny_dense_seed1")
    small_study.main(arguments)
    assert json.loads((folder / "out/study.json").read_text())["missing"] == []
    assert (runs / "tiny_ddf_seed0/last.pt").stat().st_mtime_ns == before


def test_changes_of_the_recipe_have_runs_of_their_own(study):
    folder, arguments, runs = study
    output = str(folder / "out" / "lr")
    arguments = [*arguments, "--variants", "ddf", "--seeds", "1", "--output", output, "--set", "optim.lr=0.5"]
    small_study.main(arguments)
    record = json.loads((folder / "out/lr.json").read_text())
    assert list(record["top1"]) == ["ddf"]
    assert "learning rate 0.5" in record["recipe"]
    assert record["command"].endswith("--set optim.lr=0.5 --seeds 1 --variants ddf")
    assert (runs / "tiny_optim.lr=0.5_ddf_seed0" / "last.pt").exists()
    refused([*arguments[:-1], "optim.lrr=1"])


def refused(arguments):
    with pytest.raises(SystemExit) as stopped:
        small_study.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--variants", "dens"], "--variants: invalid choice: 'dens' (choose from"),
        (["--images-per-class", "9"], "has 7 images: lower --images-per-class"),
        (["--data", "nowhere"], "must hold train/ and val/"),
        (["--report-only", "--runs", "nowhere"], "no run of the study has finished under nowhere"),
        (["--seeds", "0"], "--seeds: must be at least 1, got 0"),
        (["--jobs", "0"], "--jobs: must be at least 1, got 0"),
        (["--images-per-class", "-5"], "--images-per-class: must be at least 0, got -5"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_are_named(study, change, message, capsys):
    _, arguments, _ = study
    refused([*arguments, *change])
    assert message in capsys.readouterr().err


def test_other_images_have_other_runs(study, tmp_path, image_tree, capsys):
    _, arguments, _ = study
    same_name = tmp_path / image_tree.name
    shutil.copytree(image_tree, same_name)
    refused([*arguments, "--report-only", "--data", str(same_name)])
    assert "no run of the study has finished" in capsys.readouterr().err


def test_runs_of_two_recipes_are_not_compared(study):
    folder, _, runs = study
    two = {("dense", 0): runs / "tiny_dense_seed0", ("ddf", 0): folder / "other"}
    shutil.copytree(runs / "tiny_ddf_seed0", folder / "other")
    config = folder / "other" / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.001", "lr: 0.002"))
    with pytest.raises(ValueError, match="were trained with different recipes"):
        small_study_report.write_report(folder / "mixed", two, folder, "command")


def test_every_claim_is_about_variants_of_the_paper():
    for better, worse in small_study_report.CLAIMS:
        assert small_study_report.VARIANTS[better].paper > small_study_report.VARIANTS[worse].paper
