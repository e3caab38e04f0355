"""The report folder of eval.py: what its files say agrees, one set or several, however many processes."""

import csv
import json
import os
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ddfnet
from ddfnet.checkpoint import save_checkpoint
from ddfnet.data.sources.folder import FolderIndex
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint, files_lines
from ddfnet.evaluation import figures
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.predictions import Predictions
from ddfnet.evaluation.report import PredictionReport, Settings
from ddfnet.utils.errors import DataError, UserError
from tests.conftest import CLASSES, launch

NAME = "ddf_mul_resnet14_32px"
FILES = ["report.json", "report.md", "per_class.csv", "report.html"]
FIGURES = ["calibration.png", "confusion.png", "mistakes.png"]
COMMON = {"device": "cpu", "workers": 0, "batch_size": 4}


def evaluated(*arguments, **options):
    """The content of report.json, or of sets.json."""
    return evaluate_checkpoint(*arguments, **options).to_dict()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights that give several answers; more outputs than classes, and the classes in an order of their own."""
    torch.manual_seed(0)
    model = ddfnet.create_model(NAME, num_classes=7)
    with torch.no_grad():
        model.get_classifier().weight.normal_(std=3)
    how = {"input_size": 16, "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}
    meta = {
        "task": "classification", "model": {"name": NAME, "num_classes": 7, "kwargs": {}},
        "classes": CLASSES[::-1], "preprocessing": how, "precision": "fp32",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    save_checkpoint(path, {"meta": meta, "model": model.state_dict(), "ema": None})
    return path


@pytest.fixture
def no_figures(monkeypatch):
    """As where matplotlib is not installed; also for tests of other things, since drawing takes longer than they do."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def table(folder):
    with (folder / "per_class.csv").open() as file:
        return list(csv.DictReader(file))


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
    result = launch(
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


@pytest.fixture
def sets(image_tree, tmp_path):
    """val, real, v2 and two classes of it, from the same images under names that do not repeat."""
    root = tmp_path / "sets"
    number = 0
    for position, kind in enumerate(CLASSES):  # CLASSES are sorted: their positions are the numbers of v2
        for path in sorted((image_tree / "val" / kind).iterdir()):
            number += 1
            name = f"ILSVRC2012_val_{number:08d}.png"
            for folder in (f"val/{kind}", f"imagenetv2-matched-frequency-format-val/{position}", f"two/{kind}"):
                if folder.startswith("two") and kind not in ("disc", "ring"):
                    continue
                (root / folder).mkdir(parents=True, exist_ok=True)
                (root / folder / name).symlink_to(path)
    labels = [[i // 5] if i % 5 else [] for i in range(24)] + [[0, 1, 2, 3, 4]]  # the last may be anything
    (root / "real.json").write_text(json.dumps(labels))
    return root


def test_sets_side_by_side(checkpoint, image_tree, sets, tmp_path, capsys, no_figures):
    plain = evaluated(checkpoint, data=image_tree, output=tmp_path / "plain", **COMMON)
    capsys.readouterr()
    summary = evaluated(
        checkpoint, data=sets, sets=f"val,real,v2,two={sets / 'two'}", output=tmp_path / "out", **COMMON
    )
    out = capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "sets.json").read_text()) == summary
    assert all((tmp_path / "out" / name).is_file() for name in summary["files"])
    found = summary["sets"]
    for name in ("val", "v2"):  # the same images in the same order
        for key in ("top1", "top5", "ece", "n"):
            assert found[name][key] == plain[key], (name, key)
        assert found[name]["loss"] == pytest.approx(plain["loss"])
    assert (found["real"]["n"], found["real"]["loss"]) == (20, None)
    assert (found["two"]["n"], found["two"]["classes"]) == (10, 2)
    assert found["two"]["top5"] == 100

    # by hand: two of seven outputs compete
    model = ddfnet.create_model(NAME, num_classes=7).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    hits, columns = 0, [CLASSES[::-1].index("disc"), CLASSES[::-1].index("ring")]
    for label, kind in enumerate(("disc", "ring")):
        for path in (sets / "two" / kind).iterdir():
            image = Image.open(path).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
            with torch.inference_mode():
                hits += int(model((pixels - 0.5) / 0.25)[0, columns].argmax() == label)
    assert found["two"]["top1_count"] == hits

    page = (tmp_path / "out" / "sets.md").read_text()
    for name in found:
        row = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert f"{found[name]['top1']:.2f} %" in row
        assert len(row) <= 80
        assert f"[{name}]({name}/report.md) ([page]({name}/report.html))" in page
        assert json.loads((tmp_path / "out" / name / "report.json").read_text())["top1"] == found[name]["top1"]
    assert "other 5 outputs, 2 of them without a class name, do not compete" in page
    assert "Beyer et al. 2020" in (tmp_path / "out" / "real" / "report.md").read_text()


def test_mistakes_come_before_any_work(checkpoint, image_tree, tmp_path):
    def fails(kind, pattern, path=checkpoint, **arguments):
        with pytest.raises(kind, match=pattern):
            evaluated(path, output=tmp_path / "out", **{**COMMON, **arguments})

    fails(DataError, "set v2 .* is not at .*huggingface.co", sets="val,v2", data=image_tree)
    fails(UserError, "'v3' is not a set", sets="v3", data=image_tree)
    bare = tmp_path / "bare.pt"
    torch.save(ddfnet.create_model(NAME, num_classes=5).state_dict(), bare)
    fails(UserError, "does not name its 5 classes", bare, model=NAME, sets="val", data=image_tree)
    thousand = tmp_path / "thousand.pt"
    torch.save(ddfnet.create_model(NAME, num_classes=1000).state_dict(), thousand)
    fails(DataError, "1000 missing .n01440764", thousand, model=NAME, sets="val", data=image_tree)
    own = f"mine={image_tree / 'val'}"
    fails(UserError, f"--data {image_tree} is not used", sets=own, data=image_tree)
    fails(UserError, "--data nowhere is not used", sets=own, data="nowhere")
    depth = tmp_path / "depth.pt"
    save_checkpoint(depth, {"meta": {"task": "depth"}, "model": {"w": torch.zeros(1)}, "ema": None})
    fails(UserError, "--sets, --tta cannot be used with a checkpoint of depth", depth, sets="val", tta=True)
    assert not (tmp_path / "out").exists()


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


def test_names_that_are_no_utf8_are_spelled_out(image_tree, tmp_path, monkeypatch, no_figures):
    """Printed, too: stdout is strict."""
    data = tmp_path / os.fsdecode(b"d\xe9")
    for name, kind in ((b"caf\xe9", "disc"), (b"tee", "ring")):
        (data / os.fsdecode(name)).mkdir(parents=True)
        for i in range(3):
            (data / os.fsdecode(name) / f"{i}.png").symlink_to(image_tree / "val" / kind / f"{i}.png")
    torch.save(ddfnet.create_model(NAME, num_classes=2).state_dict(), tmp_path / "two.pt")
    with (tmp_path / "stdout").open("w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        report = evaluated(tmp_path / "two.pt", model=NAME, data=data, output=tmp_path / "out", input_size=16, **COMMON)
    assert report["files"] == FILES
    assert {row["class"] for row in table(tmp_path / "out")} == {r"caf\udce9", "tee"}
    assert r"caf\\udce9" in (tmp_path / "out" / "report.md").read_text()  # Markdown shows one backslash
    assert json.loads((tmp_path / "out" / "report.json").read_text())["data"] == str(data)


@pytest.mark.parametrize("padded", [False, True])
def test_numbered_folders_without_class_names(image_tree, tmp_path, no_figures, padded):
    """Their order as text, 0, 1, 10, 2, is nobody's order of outputs."""
    data = tmp_path / "numbers"
    for i in range(11):
        (data / (f"{i:02d}" if padded else str(i))).mkdir(parents=True)
        (data / (f"{i:02d}" if padded else str(i)) / "0.png").symlink_to(image_tree / "val" / "disc" / "0.png")
    torch.save(ddfnet.create_model(NAME, num_classes=11).state_dict(), tmp_path / "bare.pt")
    arguments = {"model": NAME, "data": data, "output": tmp_path / "out", "input_size": 16, **COMMON}
    if padded:
        assert evaluated(tmp_path / "bare.pt", **arguments)["n"] == 11
        return
    with pytest.raises(DataError, match=r"are numbers.* does not name its classes: rename .* \(00, 01, "):
        evaluated(tmp_path / "bare.pt", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_thousand_numbered_folders_are_those_of_v2(image_tree, tmp_path, no_figures):
    data = tmp_path / "v2"
    for i in range(1000):
        (data / str(i)).mkdir(parents=True)
        (data / str(i) / "0.png").symlink_to(image_tree / "val" / "disc" / "0.png")
    torch.save(ddfnet.create_model(NAME, num_classes=1000).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(DataError, match=f"give --sets v2={data} in place of --data"):
        evaluated(tmp_path / "bare.pt", model=NAME, data=data, output=tmp_path / "out", **COMMON)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_size": 0}, "--input-size 0 must be at least 1"),
        ({"crop_pct": 7.0}, "--crop-pct 7.0 must be at most 1"),
        ({"interpolation": "foo"}, "--interpolation foo must be 'nearest', "),
    ],
)
def test_wrong_options_are_named(options, words, checkpoint, image_tree, tmp_path):
    with pytest.raises(UserError, match=words):
        evaluated(checkpoint, data=image_tree / "val", output=tmp_path / "out", **options, **COMMON)
    assert not (tmp_path / "out").exists()


def test_a_set_of_ones_own_scores_the_same_in_any_order_of_classes(checkpoint, image_tree, tmp_path, no_figures):
    """The same network with its outputs in two orders, two of them without a name and with the highest logits."""
    payload = torch.load(checkpoint, weights_only=True)
    payload["model"]["fc.bias"][5:] = 50
    found = []
    for order in (CLASSES[::-1], CLASSES):
        rows = [CLASSES[::-1].index(kind) for kind in order] + [5, 6]
        model = {**payload["model"], **{key: payload["model"][key][rows] for key in ("fc.weight", "fc.bias")}}
        torch.save({**payload, "meta": {**payload["meta"], "classes": [*order]}, "model": model}, tmp_path / "best.pt")
        own = f"mine={image_tree / 'val'}"
        summary = evaluated(tmp_path / "best.pt", sets=own, output=tmp_path / "out", **COMMON)
        found.append(summary["sets"]["mine"])
    assert found[0]["top1_count"] == found[1]["top1_count"] > 0
    assert found[0]["loss"] == pytest.approx(found[1]["loss"])
    assert found[0]["note"] == found[1]["note"]
    assert "other 2 outputs, 2 of them without a class name" in found[0]["note"]


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
