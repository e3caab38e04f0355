"""The pages on the zoo say what the entries say, and nothing else."""

import dataclasses
import re
import runpy
import shutil
import sys

import pytest
import torch

import ddfnet
from ddfnet.inference.cards import license_id, way_to_get, zoo_card
from ddfnet.zoo import entries, find
from scripts.dev import write_model_zoo
from tests.conftest import ROOT

DIGITS = "ddf_mul_resnet14_32px.digits"
DOCS = ROOT / "docs" / "reference"
LOG = [
    {"kind": "train", "step": 1, "epoch": 0.5, "loss": 9.0, "lr": 0.1},
    {"kind": "train", "step": 2, "epoch": 1.0, "loss": 1.25, "lr": 0.05},
    {"kind": "val", "step": 2, "epoch": 1.0, "loss": 2.5, "top1": 40.0, "top5": 90.0, "n": 5},
    {"kind": "train", "step": 4, "epoch": 2.0, "loss": 0.75, "lr": 0.0},
]


@pytest.fixture(scope="module")
def pages():
    return write_model_zoo.pages()


def test_the_pages_are_current(pages):
    there = {"model_zoo.md", *(f"models/{path.name}" for path in (DOCS / "models").iterdir())}
    assert there == set(pages)
    for name, text in pages.items():
        assert (DOCS / name).read_text() == text, f"run python scripts/dev/write_model_zoo.py: {name}"


def test_each_entry_has_a_row_and_a_card(pages):
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\)", pages["model_zoo.md"], re.MULTILINE)
    assert rows == [(entry.name, f"models/{entry.name}.md") for entry in entries()]
    for entry in entries():
        card = pages[f"models/{entry.name}.md"]
        for fact in (entry.data, entry.license, entry.origin, entry.config, entry.command, entry.note, entry.commit):
            assert (fact or "") in card
        assert (f"`{entry.file.sha256}`" if entry.file.sha256 else "sha256 not published") in card
        for value in entry.metrics.values():
            assert f"| {value:g} %" in card


def test_the_card_of_the_digits(pages):
    card = pages[f"models/{DIGITS}.md"]
    parameters = sum(p.numel() for p in ddfnet.create_model(DIGITS).parameters())
    for words in (
        f"{parameters:,} parameters, 10 classes.",
        "| top-1 | 98.05 % (352 of 359) | measured |",
        "The last epochs of 24 ",
        "| 24 | 0.0393 | 8.9e-09 | 0.0610 | 98.05 % |",
        "| mean | 0.5, 0.5, 0.5 |",
        "(Wilson) is 96.0 to 99.1 %",
    ):
        assert words in card
    assert "the authors'" not in card


def test_claims_are_called_claims(pages):
    card = pages["models/ddf_mul_resnet50.official_in1k.md"]
    assert "| top-1 | 79.1 % | the authors', not measured here |" in card
    assert "Nobody has measured these weights" in card
    assert "Measured with" not in card
    assert "last epochs" not in card


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"top1": 12.26, "top5": 100.0}},
        {"license": "CC0-1.0"},
        {"status": "claimed"},
        {"images": 7},
        {"tag": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_entry_changes_page_and_card(pages, change):
    entry = dataclasses.replace(find(DIGITS), **change)
    changed = write_model_zoo.pages([entry, *(e for e in entries() if e.name != DIGITS)])
    assert changed["model_zoo.md"] != pages["model_zoo.md"]
    assert changed[f"models/{entry.name}.md"] != pages[f"models/{DIGITS}.md"]


def test_parameters_are_counted_with_the_classes_of_the_entry():
    ten, four = (write_model_zoo.count_parameters(find(DIGITS).model, classes) for classes in (10, 4))
    assert ten - four == 6 * (512 + 1)


def test_the_table_of_epochs_has_the_last_record_of_each():
    card = zoo_card(find(DIGITS), parameters=1, log=LOG)
    assert "| 1 | 1.2500 | 0.05 | 2.5000 | 40.00 % |\n| 2 | 0.7500 | 0 | - | - |" in card
    assert "9.0000" not in card
    assert "last epochs" not in zoo_card(find(DIGITS), parameters=1)


def test_ways_and_licenses():
    ways = {entry.name: way_to_get(entry) for entry in entries()}
    assert ways[DIGITS] == "shipped"
    assert ways["ddf_mul_resnet50.official_in1k"] == "gdown"
    assert ways["ddf_add_resnet101.official_in1k"] == "by hand"
    direct = dataclasses.replace(find(DIGITS).file, urls=("https://example.org/x",), shipped=False)
    assert way_to_get(dataclasses.replace(find(DIGITS), file=direct)) == "direct"
    assert [license_id(text) for text in ("MIT", None, "MIT for the code")] == ["mit", "unknown", "other"]


def test_python_of_the_page_runs(pages):
    (block,) = re.findall(r"```python\n(.*?)```", pages["model_zoo.md"], re.DOTALL)
    names = {}
    exec(block, names)
    assert names["model"](torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert names["finetune"].num_classes == 4
    assert len(names["backbone"].feature_info) == 5
    assert "CenterCrop(size=(32, 32))" in str(names["transform"])


def test_named_files_and_scripts_exist(pages):
    for text in pages.values():
        for name in re.findall(r"`((?:configs|scripts|ddfnet)/[\w./-]+\.\w+)`", text):
            assert (ROOT / name).exists(), name
        for name in re.findall(r"(?:bash|python) (scripts/[\w./-]+|\w+\.py)", text):
            assert (ROOT / name).exists(), name


def test_help_writes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["write_model_zoo.py", "--help"])
    before = {path: path.stat().st_mtime_ns for path in DOCS.rglob("*.md")}
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(write_model_zoo.__file__, run_name="__main__")
    assert stopped.value.code == 0
    assert "docs/reference/model_zoo.md" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in DOCS.rglob("*.md")} == before


def test_cards_of_entries_that_are_gone_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(write_model_zoo, "DOCS", tmp_path)
    shutil.copy(DOCS / "model_zoo.md", tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "old.md").write_text("old")
    write_model_zoo.main()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(f"{e.name}.md" for e in entries())
