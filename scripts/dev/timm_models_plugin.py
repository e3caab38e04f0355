"""A plugin of pytest that gives timm's tests the models of this package in place of timm's: see timm_tests.sh.

`--record` adds the outcomes to docs/results/timm_tests.json, of which docs/reference/models.md is made: a run in parts
adds up. Outcomes of another timm or PyTorch are dropped first.
"""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import ddfnet
from ddfnet.models import create_model
from ddfnet.utils.files import write_json

RECORD = Path(__file__).resolve().parents[2] / "docs" / "results" / "timm_tests.json"

OUR_MODULES = ["ddf_resnet", "baselines"]
NO_TORCHSCRIPT = "dynamic filters refuse TorchScript, which PyTorch has given up, and name torch.export"
_list_models = timm.list_models


def _ours(filter: Any = "", module: Any = "", **options: Any) -> list[str]:
    """`timm.list_models` of our modules, whichever of timm's a test asks for."""
    return _list_models(filter, module=OUR_MODULES, **options)


timm.list_models = _ours
timm.list_pretrained = lambda *arguments, **options: []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help=f"add the outcomes to {RECORD.name}")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record"):
        config.pluginmanager.register(_Recorder())


class _Recorder:
    """What became of each case, by test and model."""

    def __init__(self) -> None:
        versions = {"timm": timm.__version__, "torch": torch.__version__}
        earlier = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        same = {key: earlier.get(key) for key in versions} == versions
        self.content = {**versions, "date": date.today().isoformat(), "tests": earlier["tests"] if same else {}}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        test, _, case = report.nodeid.partition("::")[2].partition("[")
        outcome = "refused" if hasattr(report, "wasxfail") and report.outcome == "skipped" else report.outcome
        tests = self.content["tests"]
        tests.setdefault(test, {})[_model_of(case)] = outcome
        # After each: a run may be ended at any time.
        write_json(
            RECORD, {**self.content, "tests": {name: dict(sorted(tests[name].items())) for name in sorted(tests)}}
        )


def _model_of(case: str) -> str:
    """The model in the parameters of a case, as `1-ddf_mul_resnet50.imagenet]` has them, with its tag."""
    parts = case.rstrip("]").split("-")
    return next(part for part in parts if part.partition(".")[0] in ddfnet.list_models())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drops the cases of timm's models that a test names by itself, and expects the refusal of TorchScript."""
    names = set(ddfnet.list_models())
    kept = []
    for item in items:
        name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
        if str(name).partition(".")[0] not in names:  # a test without a case has a mark of pytest there
            continue
        if "torchscript" in item.name and _refuses_torchscript(name):
            item.add_marker(pytest.mark.xfail(reason=NO_TORCHSCRIPT, raises=RuntimeError, strict=True))
        kept.append(item)
    items[:] = kept


def _refuses_torchscript(name: str) -> bool:
    with torch.device("meta"):
        return any(hasattr(module, "__prepare_scriptable__") for module in create_model(name).modules())
