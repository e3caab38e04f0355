"""The report folder of eval.py: what its files say agrees, one set or several, however many processes."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ddfnet
from ddfnet.data.sources.folder import FolderIndex
from ddfnet.engine.evaluate_checkpoint import files_lines
from ddfnet.evaluation import figures
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.predictions import Predictions
from ddfnet.evaluation.report import PredictionReport, Settings
from tests.conftest import CLASSES
from tests.engine.evaluating import COMMON, FILES, NAME, evaluated, table
from tests.processes import launch_forked

FIGURES = ["calibration.png", "confusion.png", "mistakes.png"]


def test_all_files_tell_the_same(checkpoint, image_tree, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pyplot = "matplotlib.pyplot" in sys.modules
    report = evaluated(checkpoint, data=image_tree, output=tmp_path, **COMMON)
    assert ("matplotlib.pyplot" in sys.modules) == pyplot  # its global state is left alone
    assert report["files"] == FILES + FIGURES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report["files"])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (report["tta"], report["classes"]) == (False, 5)

    rows = table(tmp_path)
    assert [row["class"] for row in rows] == [*CLASSES[::-1]]
    for key, count in (("n", 25), ("top1_count", report["top1_count"]), ("top5_count", report["top5_count"])):
        assert sum(int(row[key]) for row in rows) == count
    assert 0 < report["top1_count"] < 25
    assert all(row["predicted_as"] != row["class"] for row in rows)

    page = (tmp_path / "report.md").read_text()
    assert f"({report['top1_count']} of 25)" in page
    assert f"{report['ece']:.2f} % (15 bins)" in page
    assert report["environment"]["packages"]["torch"] in page
    assert set(re.findall(r"\]\(([^)]+)\)", page)) == set(report["files"]) - {"report.md"}
    for name in FIGURES:
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 10
    out = capsys.readouterr().out
    assert all(len(line) <= 80 or str(tmp_path) in line or str(image_tree) in line for line in out.splitlines())
    listed = " ".join(out[out.index("\n  report.json") :].split())
    assert listed == ", ".join(report["files"])


def test_a_report_with_other_options_is_kept(checkpoint, image_tree, tmp_path, capsys, no_figures):
    out = tmp_path / "out"
    first = evaluated(checkpoint, data=image_tree, output=out, **COMMON)
    evaluated(checkpoint, data=image_tree, output=out, **{**COMMON, "batch_size": 3})
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert "is kept in" not in capsys.readouterr().out
    evaluated(checkpoint, data=image_tree, output=out, interpolation="nearest", **COMMON)
    (kept,) = (out / "earlier").iterdir()
    assert (
        f"{out} had a report that differs in preprocessing.interpolation: it is kept in {kept}"
        in capsys.readouterr().out
    )
    assert sorted(path.name for path in kept.iterdir()) == sorted(FILES)
    assert json.loads((kept / "report.json").read_text())["top1_count"] == first["top1_count"]
    sets = {"data": image_tree, "sets": "val", "output": out, **COMMON}
    evaluated(checkpoint, **sets)
    evaluated(checkpoint, **sets, crop_pct=0.9)
    (kept,) = {*(out / "earlier").iterdir()} - {kept}
    assert {"sets.json", "sets.md", "val"} == {path.name for path in kept.iterdir()}
    assert (kept / "val" / "report.html").is_file()
    assert json.loads((out / "val" / "report.json").read_text())["preprocessing"]["crop_pct"] == 0.9


def test_two_processes_give_the_same_image_by_image(checkpoint, image_tree, tmp_path, no_figures):
    """With the options that could go wrong: several sets, and two passes per image."""
    arguments = ("--checkpoint", checkpoint, "--data", image_tree, "--sets", f"val,v2={tmp_path / 'v2'}", "--tta")
    for position, kind in enumerate(CLASSES):
        (tmp_path / "v2").mkdir(exist_ok=True)
        (tmp_path / "v2" / str(position)).symlink_to(image_tree / "val" / kind)
    result = launch_forked(
        "eval.py", *arguments, "--output", tmp_path / "two", "--workers", 0, "--device", "cpu", "--batch-size", 4,
        processes=2,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "test-time augmentation" in result.stdout
    two = json.loads((tmp_path / "two" / "sets.json").read_text())
    alone = evaluated(
        checkpoint, data=image_tree, sets=f"val,v2={tmp_path / 'v2'}", tta=True, output=tmp_path / "one", **COMMON
    )
    assert (two["processes"], two["tta"]) == (2, True)
    for name in ("val", "v2"):
        for key in ("n", "top1_count", "top5_count"):
            assert two["sets"][name][key] == alone["sets"][name][key], key
        assert two["sets"][name]["ece"] == pytest.approx(alone["sets"][name]["ece"], abs=1e-3)
        rows = zip(table(tmp_path / "two" / name), table(tmp_path / "one" / name), strict=True)
        for row, other in rows:
            confidence = float(other.pop("mean_confidence"))
            assert float(row.pop("mean_confidence")) == pytest.approx(confidence, abs=2e-4)
            assert row == other
        page = (tmp_path / "two" / name / "report.md").read_text()
        assert "| test-time augmentation | mirror image |" in page
        assert "(`--tta`)" in page


def test_mistakes_show_what_the_network_saw(checkpoint, image_tree, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    shown = []
    monkeypatch.setattr(
        figures, "draw_mistakes", lambda mistakes, total: shown.extend(mistakes) or figures._figure(1, 1)
    )
    report = evaluated(checkpoint, data=image_tree, output=tmp_path, **COMMON)
    assert len(shown) == min(20, 25 - report["top1_count"])
    assert [m.confidence for m in shown] == sorted((m.confidence for m in shown), reverse=True)
    model = ddfnet.create_model(NAME, num_classes=7).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    names = [*CLASSES[::-1], "output 5", "output 6"]
    for mistake in shown:
        assert mistake.target != mistake.predicted
        pixels = torch.from_numpy(mistake.image.copy()).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            best = model((pixels - 0.5) / 0.25).softmax(1)[0].max(0)
        assert names[best.indices] == mistake.predicted
        assert best.values.item() == pytest.approx(mistake.confidence, abs=1e-4)


def test_without_matplotlib_everything_else_is_written(checkpoint, image_tree, tmp_path, capsys, no_figures):
    (tmp_path / "confusion.png").write_bytes(b"of an earlier report")
    report = evaluated(checkpoint, data=image_tree, output=tmp_path, **COMMON)
    assert report["files"] == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert "![" not in (tmp_path / "report.md").read_text()
    out = capsys.readouterr().out
    assert out.count("no figures") == 1
    assert out.rstrip().endswith(figures.NO_FIGURES)


def test_mirrored_images_give_the_same_with_tta_and_not_without(checkpoint, image_tree, tmp_path, no_figures):
    """The mirror image of an image has the same mean of the two, whatever the network."""
    mirrored = tmp_path / "mirrored"
    for path in (image_tree / "val").rglob("*.png"):
        target = mirrored / path.relative_to(image_tree / "val")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(target)
    results = {
        (data, tta): evaluated(checkpoint, data=data, tta=tta, output=tmp_path / "out", **COMMON)
        for data in (image_tree / "val", mirrored)
        for tta in (False, True)
    }
    assert results[mirrored, True]["loss"] == pytest.approx(results[image_tree / "val", True]["loss"], rel=1e-5)
    assert results[mirrored, False]["loss"] != pytest.approx(results[image_tree / "val", False]["loss"], rel=1e-3)
    assert results[mirrored, True]["loss"] != pytest.approx(results[mirrored, False]["loss"], rel=1e-3)


def test_a_network_that_gives_nan_still_has_a_report(checkpoint, image_tree, tmp_path):
    payload = torch.load(checkpoint, weights_only=True)
    payload["model"]["fc.weight"].fill_(3e38)  # finite, but what comes out is not
    torch.save(payload, tmp_path / "nan.pt")
    report = evaluated(tmp_path / "nan.pt", data=image_tree, output=tmp_path / "out", **COMMON)
    assert report["ece"] != report["ece"]
    assert (tmp_path / "out" / "report.md").exists()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    written = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=refuse)
    assert (written["ece"], written["loss"], written["n"]) == (None, None, 25)


def test_a_figure_that_fails_costs_no_report(checkpoint, image_tree, tmp_path, monkeypatch, capfd):
    """An image that has become unreadable since it was evaluated, and a matrix that cannot be drawn."""
    pytest.importorskip("matplotlib")

    def unreadable(*_):
        raise OSError(5, "Input/output error")

    def undrawable(*arguments):
        raise RuntimeError("no glyph\nfor this name")

    monkeypatch.setattr(figures, "open_image", unreadable)
    monkeypatch.setattr(figures, "draw_confusion", undrawable)
    (tmp_path / "confusion.png").write_bytes(b"of an earlier report")
    report = evaluated(checkpoint, data=image_tree, output=tmp_path, **COMMON)
    assert report["files"] == [*FILES, "calibration.png"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report["files"])
    assert re.findall(r"!\[[^]]*\]\(([^)]+)\)", (tmp_path / "report.md").read_text()) == ["calibration.png"]
    problems = [line for line in capfd.readouterr().err.splitlines() if line.startswith("no ")]
    assert problems[0] == "no confusion.png: RuntimeError: no glyph for this name"
    assert re.fullmatch(r"no mistakes\.png: DataError: image .*\.png cannot be read \(.*output error\)", problems[1])
    assert len(problems) == 2


def test_the_texts_are_written_before_a_figure_is_drawn(checkpoint, image_tree, tmp_path, monkeypatch):
    """Killed while drawing, hours of evaluation still have their report."""
    pytest.importorskip("matplotlib")

    def killed(calibration):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "draw_calibration", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluated(checkpoint, data=image_tree, output=tmp_path, **COMMON)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert json.loads((tmp_path / "report.json").read_text())["files"] == FILES


def test_names_with_spaces_stay_whole_on_the_console():
    files = [f"{name} of mine/{file}" for name in ("first set", "second set", "third set") for file in FILES + FIGURES]
    lines = files_lines("out", files).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(f"{name} of mine/" in "\n".join(lines) for name in ("first set", "second set", "third set"))
    data = "/data/" + "a folder with spaces " * 5 + "end"
    how = {"input_size": 16, "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}
    settings = Settings(
        checkpoint="best.pt", task="classification", weights="ema", model=NAME, parameters=1, precision="fp32",
        facts={"preprocessing": how, "tta": False}, batch_size=1, device="cpu", processes=1, environment={"gpus": []},
    )  # fmt: skip
    one, no = torch.ones(1), torch.zeros(1, 1, dtype=torch.int64)
    report = PredictionReport(
        settings=settings, data=data, metrics={"top1": 1.0, "top5": 1.0, "loss": 1.0, "n": 100}, images_per_second=1.0,
        images=ImageSet("", FolderIndex(data, ["a"], None, None, None), ["a"]), classes=["a"],
        predictions=Predictions(no[0], no, one.double(), one.double(), no == 0, one[None]),
    )  # fmt: skip
    assert data in report.console().splitlines()
