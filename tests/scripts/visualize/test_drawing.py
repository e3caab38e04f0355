"""Figures of runs and of the operation: true lines, real images, clear errors."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.processes import launch_forked

pytest.importorskip("matplotlib")
from scripts.visualize import operation
from scripts.visualize.curves import draw_curves


def write_run(folder, offset=0.0):
    folder.mkdir()
    records = [
        {"kind": "train", "step": i, "epoch": i / 4, "loss": 2 - i / 8 + offset, "lr": 0.1 * i} for i in (1, 2, 3, 4)
    ]
    records += [
        {"kind": "val", "step": 4 * e, "epoch": e, "loss": 1.0 / e, "top1": t, "top5": 100.0}
        for e, t in ((1, 40.0), (2, 60.0), (3, 55.0))
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + '{"kind": "val", "st')  # cut by a crash
    return folder


def run(*arguments, cwd=ROOT):
    return launch_forked("scripts/visualize", *arguments, cwd=cwd)


def assert_an_image(path, least_width):
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.shape[1] >= least_width
    assert pixels.std() > 10


def test_curves_are_the_recorded_values(tmp_path):
    figure = draw_curves([write_run(tmp_path / "a")])
    loss, top1, rate = figure.axes
    lines = {line.get_label(): line for line in loss.lines}
    assert lines["training"].get_ydata().tolist() == [1.875, 1.75, 1.625, 1.5]
    assert lines["validation"].get_xdata().tolist() == [1, 2, 3]
    assert top1.lines[0].get_ydata().tolist() == [40, 60, 55]
    assert top1.lines[1].get_label() == "best: 60.00"
    assert top1.lines[1].get_xydata().tolist() == [[2, 60]]
    assert rate.lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("metric", "title", "loss", "best"),
    [
        ("map", "mAP (boxes), %", "loss", 60),
        ("rmse", "RMSE, cm", "loss", 40),
        ("map_macro", "mAP (mean", "loss, nats", 60),
    ],
)
def test_curves_of_other_tasks_show_what_ranks_their_checkpoints(tmp_path, metric, title, loss, best):
    path = write_run(tmp_path / "a") / "metrics.jsonl"
    path.write_text(path.read_text().replace('"top1"', f'"{metric}"').replace('"top5"', '"n"'))
    losses, quality, _ = draw_curves([tmp_path / "a"]).axes
    assert losses.get_title() == loss
    assert quality.get_title().startswith(title)
    assert quality.lines[0].get_ydata().tolist() == [40, 60, 55]
    assert quality.lines[1].get_label() == f"best: {best:.2f}"


def test_one_run_and_two_runs(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", offset=0.5)
    assert run("curves", a).returncode == 0
    assert_an_image(a / "curves.png", 1200)
    assert run("curves", a, b, cwd=tmp_path).returncode == 0
    assert_an_image(tmp_path / "curves.png", 1200)


def test_curves_of_nothing(tmp_path):
    result = run("curves", tmp_path / "none")
    assert result.returncode == 2
    assert "metrics.jsonl does not exist" in result.stderr
    (tmp_path / "metrics.jsonl").touch()
    result = run("curves", tmp_path)
    assert result.returncode == 2
    assert "no records yet" in result.stderr
    assert "Traceback" not in result.stderr


def test_figure_of_the_operation(tmp_path):
    result = run("operation", "--output", tmp_path / "ddf.png")
    assert result.returncode == 0, result.stderr
    assert_an_image(tmp_path / "ddf.png", 1600)


def test_numbers_in_the_figure_are_those_of_the_operator():
    """The picked patch times the combined filter is the picked output."""
    example = operation.compute_example()
    value = (example.patch * example.combined).sum()
    assert value == pytest.approx(example.y[operation.CHANNEL, operation.ROW, operation.COLUMN], abs=1e-5)
