"""transport.py on tiny batches: all loaders deliver the same, and the report is complete. Nothing asserts speed."""

import json
import sys

import pytest
import torch

from scripts.benchmarks import transport

BATCHES = [[4 * k + i for i in range(4)] for k in range(6)]


@pytest.mark.skipif(sys.platform != "linux", reason="forks workers")
def test_all_loaders_bring_the_same_batches():
    for name, start in transport.loaders(6, BATCHES).items():
        for batch, delivered in zip(BATCHES, start(1), strict=True):
            images, labels = (
                (delivered[0], delivered[1]) if name == "timm" else (delivered["image"], delivered["target"])
            )
            assert images.shape == (4, 3, 6, 6)
            assert images.dtype == torch.uint8
            assert labels.tolist() == batch
            assert (images[0] == batch[0]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the CPU time of other processes")
def test_the_report_is_complete(tmp_path, capsys):
    file = tmp_path / "transport.json"
    arguments = ["--size", "8", "--batch", "4", "--passes", "2", "--turns", "2", "--json", str(file)]
    assert transport.main(arguments) == 0
    report = json.loads(file.read_text())
    assert list(report["ms"]) == ["ring", "ring, copied", "DataLoader", "timm", "filling"]
    assert all(len(passes) == 2 and min(passes) > 0 for passes in report["ms"].values())
    assert report["settings"] == {"size": 8, "batch": 4, "workers": 1, "passes": 2, "turns": 2}
    assert "| ring, copied |" in capsys.readouterr().out
