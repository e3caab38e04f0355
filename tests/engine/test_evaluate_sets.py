"""eval.py on several sets at once, and on folders whose names are numbers or no text."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ddfnet
from ddfnet.checkpoint import save_checkpoint
from ddfnet.utils.errors import DataError, UserError
from tests.conftest import CLASSES
from tests.engine.evaluating import COMMON, FILES, NAME, evaluated, table


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
