"""The embedded default, whole: `bash scripts/test.sh -m slow`."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, launch


@pytest.mark.slow
def test_demo_reaches_its_accuracy_on_held_out_digits(tmp_path):
    pytest.importorskip("sklearn")
    digits, run = tmp_path / "digits", tmp_path / "run"
    subprocess.run([sys.executable, str(ROOT / "scripts/make_data.py"), "digits", str(digits)], check=True)
    overrides = (f"data.root={digits}", f"run.dir={run}")
    result = launch("train.py", "--config", ROOT / "configs/demo.yaml", *overrides, processes=2, timeout=1800)
    assert result.returncode == 0, result.stderr
    assert launch("eval.py", "--checkpoint", run / "best.pt").returncode == 0
    report = json.loads((run / "eval_best" / "report.json").read_text())
    assert report["n"] == 359
    assert report["top1"] >= 97
