"""The smallest classifier of every family of timm does what the committed table says."""

import re
import shutil

import pytest
import timm
import torch

from scripts.dev import write_families
from scripts.dev.families import STEPS, families, small_size, smallest, try_family

PAGE = write_families.PAGE.read_text()
ROWS = write_families.rows(PAGE)
same_timm = pytest.mark.skipif(f"timm {timm.__version__}," not in PAGE, reason="the table is of another timm")


@same_timm
def test_the_page_names_every_family():
    missing = re.search(r"^Not measured yet: (.*)\.$", PAGE, re.MULTILINE)
    assert {*ROWS, *(missing[1].split(", ") if missing else [])} == set(families())


def test_what_the_table_says_is_yes_or_a_refusal():
    """No step fails: it works, or one sentence refuses it before anything is written."""
    for family, cells in ROWS.items():
        for step, cell in zip(STEPS, cells[3:-1], strict=True):
            assert cell in ("yes", "-") or cell.startswith("refused: "), f"{family}, {step}: {cell}"


def test_its_sum_is_that_of_its_rows():
    whole = sum(list(cells[3:-1]) == ["yes"] * len(STEPS) for cells in ROWS.values())
    assert re.search(rf"^{whole} of {len(ROWS)} measured families pass every step", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("family", "model"), [("ddf_resnet", "ddf_add_resnet14_32px"), ("starnet", "starnet_s050")])
def test_the_smallest(family, model):
    assert smallest(family) == model


@pytest.mark.parametrize(("least", "size"), [(1, 64), (65, 128), (129, 224), (1000, 224)])  # 112, 96: after 128
def test_the_size_is_one_that_the_network_takes(least, size, monkeypatch):
    def takes(network, side):
        assert side >= least
        return torch.zeros(2, 2)

    monkeypatch.setattr("scripts.dev.families._logits", takes)
    assert small_size("test_resnet", {}) == (160 if size == 224 else size)  # its own


@pytest.mark.slow
@same_timm
@pytest.mark.parametrize("family", families())
def test_a_family(family, tmp_path):
    torch.set_num_threads(1)  # a process is forked
    new, log = write_families.row(try_family(family, tmp_path)), (tmp_path / "log.txt").read_text()[-3000:]
    shutil.rmtree(tmp_path)  # checkpoints of a hundred networks would fill a disk
    if family in ROWS:
        assert new[:-1] == ROWS[family][:-1], log
    else:
        assert all(cell in ("yes", "-") or cell.startswith("refused: ") for cell in new[3:-1]), log
