"""Trackers: what each library keeps of a run, a resumed run, and one that fails."""

import importlib.util
import json
import os
import re
import sys

import numpy as np
import pytest
import torch

from ddfnet.engine.tracker_libraries import LIBRARIES, RunFacts
from ddfnet.engine.trackers import Trackers, check_trackers
from ddfnet.tasks import load_config
from ddfnet.utils.errors import ConfigError
from tests.engine.runs import interrupted_run, whole_run
from tests.engine.test_resume import assert_same_bits


def facts(folder, **config):
    return RunFacts(folder, {"optim.lr": 0.1, "model.name": "x", **config}, "optim:\n  lr: 0.1\n", ("val/top1",))


class Recorder:
    id = "7"

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def scalars(self, values, step, epoch):
        self.calls.append((values, step, epoch))
        if step == self.fails_at:
            raise ConnectionError("no route\nto host")

    def close(self, outcome):
        self.calls.append(outcome)


def events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def test_one_that_fails_is_left_out_with_one_warning_and_the_others_stay(tmp_path, monkeypatch, caplog):
    good, bad = Recorder(), Recorder(fails_at=2)
    monkeypatch.setitem(LIBRARIES, "wandb", lambda *_: bad)
    monkeypatch.setitem(LIBRARIES, "mlflow", lambda *_: good)
    trackers = Trackers(["wandb", "mlflow"], facts(tmp_path))
    trackers.start(0)
    for step in (1, 2, 3, 4):
        trackers.scalars("train", {"loss": step / 2, "note": "no number"}, step, 0.5)
    trackers.outcome = "finished"
    trackers.close()
    assert good.calls == [*(({"train/loss": step / 2}, step, 0.5) for step in (1, 2, 3, 4)), "finished"]
    assert [call[1] for call in bad.calls] == [1, 2]
    assert caplog.text.count("wandb") == 1
    assert "ConnectionError: no route" in caplog.text


def test_a_new_one_that_cannot_start_is_an_error_and_a_known_one_a_warning(tmp_path, monkeypatch, caplog):
    def offline(*_):
        raise ConnectionError("no route")

    monkeypatch.setitem(LIBRARIES, "wandb", offline)
    with pytest.raises(ConfigError, match=r"run\.trackers: wandb cannot be started: ConnectionError: no route"):
        Trackers(["wandb"], facts(tmp_path)).start(0)
    (tmp_path / "trackers.json").write_text(json.dumps({"wandb": "5"}))
    trackers = Trackers(["wandb"], facts(tmp_path))
    trackers.start(3)
    assert not trackers.active
    assert caplog.text.count("training continues without them") == 1


def test_ids_are_kept_and_given_to_the_next_start(tmp_path, monkeypatch):
    known = []
    monkeypatch.setitem(LIBRARIES, "mlflow", lambda facts, step, id: known.append((step, id)) or Recorder())
    for step in (0, 4):
        Trackers(["mlflow"], facts(tmp_path)).start(step)
    assert known == [(0, None), (4, "7")]


def test_a_missing_package_is_an_error_also_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()
    for name in ("wandb", "mlflow"):
        with pytest.raises(ConfigError, match=f"package {name} is missing: pip install {name}"):
            check_trackers([name])


def test_a_run_with_a_missing_package_writes_nothing(tiny_config, tmp_path, monkeypatch):
    from ddfnet.engine import trackers
    from ddfnet.engine.train import train

    loaded = load_config(tiny_config, [f"run.dir={tmp_path / 'run'}", "run.trackers=[trackio]"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install trackio"):
        train(loaded)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["tensorboard"]),
        (["run.tensorboard=false"], []),
        (["run.trackers=[]"], []),
        (["run.trackers=[mlflow, wandb, mlflow]"], ["mlflow", "wandb"]),
        (["run.trackers=[wandb]", "run.tensorboard=true"], ["wandb", "tensorboard"]),
        (["run.trackers=[wandb]", "run.tensorboard=false"], ["wandb"]),
    ],
)
def test_the_short_key_and_the_list(tiny_config, overrides, names):
    config = load_config(tiny_config, ["run.tensorboard=null", *overrides]).config
    assert config.run.used_trackers == names


def test_tensorboard_has_all_and_changes_no_bit(tiny_config, tmp_path, monkeypatch):
    ema = "train.ema={decay: 0.5}"
    without = whole_run(tiny_config, tmp_path / "without", ema)
    parts = interrupted_run(tiny_config, tmp_path / "with", monkeypatch, ema, "run.trackers=[tensorboard]",
                            "run.tensorboard=null", stops=(3,))  # fmt: skip
    for key in without.keys() - {"config"}:
        assert_same_bits(without[key], parts[key], key)
    found = events(tmp_path / "with")
    tags = found.Tags()
    assert {"train/loss", "train/grad_norm", "epoch", "groups/lr/0_no_decay", "groups/grad_norm/1_decay"} <= set(
        tags["scalars"]
    )
    # Both starts write into one folder; the second purged nothing that it does not repeat.
    assert [event.step for event in found.Scalars("train/loss")] == list(range(1, 13))
    assert [event.value for event in found.Scalars("epoch")][-1] == 3
    assert {"train/first_batch", "val/mistakes", "val_ema/mistakes"} == set(tags["images"])
    histograms = set(tags["histograms"])
    assert {"filters_val/layer1.0.conv2/spatial", "filters_val/layer1.0.conv2/channel"} <= histograms
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert re.search(r"^    model:$", text, re.MULTILINE)
    assert "      name: ddf_mul_resnet14_32px" in text
    plugins = found.summary_metadata
    assert any(metadata.plugin_data.plugin_name == "hparams" for metadata in plugins.values())


def test_gradient_norms_of_groups_add_up_to_the_norm_before_clipping(tiny_config, tmp_path):
    whole_run(tiny_config, tmp_path / "run", "run.tensorboard=true", "train.epochs=1", "optim.clip_grad=0.01")
    found = events(tmp_path / "run")
    whole = [event.value for event in found.Scalars("train/grad_norm")]
    parts = [[e.value for e in found.Scalars(f"groups/grad_norm/{g}")] for g in ("0_no_decay", "1_decay")]
    np.testing.assert_allclose(np.hypot(*parts), whole, rtol=1e-5)
    assert min(whole) > 0.1


def test_no_tracker_leaves_no_trace_and_computes_nothing(tiny_config, tmp_path, monkeypatch):
    from ddfnet.engine import tracker_pages

    monkeypatch.setattr(tracker_pages, "contact_sheet", pytest.fail)
    monkeypatch.setattr(tracker_pages, "batch_filters", pytest.fail)
    whole_run(tiny_config, tmp_path / "run", "run.trackers=[]", "run.tensorboard=null", "train.epochs=1")
    assert not {"tensorboard", "trackers.json"} & {path.name for path in (tmp_path / "run").iterdir()}


needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")
    for name in ("wandb", "trackio", "mlflow")
}


def twice(name, folder):
    """Two starts of one run, the second of which repeats a step."""
    for first, last in ((0, 3), (2, 4)):
        trackers = Trackers([name], facts(folder))
        trackers.start(first)
        for step in range(first + 1, last + 1):
            trackers.scalars("train", {"loss": step / 2}, step, step / 10)
        trackers.image("val/mistakes", np.zeros((8, 8, 3), np.uint8), last)
        trackers.histogram("filters/a", np.zeros(5, np.float32), last)
        assert trackers.active
        trackers.outcome = "finished" if last == 4 else "interrupted"
        trackers.close()
    return json.loads((folder / "trackers.json").read_text())[name]


@needs["mlflow"]
def test_mlflow_in_a_local_store(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    number = twice("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    run = client.get_run(number)
    assert (run.info.status, run.data.params["optim.lr"]) == ("FINISHED", "0.1")
    history = client.get_metric_history(number, "train/loss")
    assert {(metric.step, metric.value) for metric in history} == {(step, step / 2) for step in (1, 2, 3, 4)}
    assert {"config.yaml", "val"} <= {file.path for file in client.list_artifacts(number)}


@needs["wandb"]
def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    number = twice("wandb", tmp_path)
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(folder.name.endswith(number) and list(folder.glob("*.wandb")) for folder in folders)


@needs["trackio"]
def test_trackio_on_this_machine(tmp_path):
    import sqlite3
    import subprocess

    # In a process of its own: it reads TRACKIO_DIR when it is imported.
    script = (
        "import sys, pathlib; from tests.engine.test_trackers import twice\n"
        "print(twice('trackio', pathlib.Path(sys.argv[1])))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    number = json.loads((tmp_path / "trackers.json").read_text())["trackio"]
    (store,) = (tmp_path / "store").glob("*.db")
    rows = sqlite3.connect(store).execute("select run_name, step, metrics from metrics").fetchall()
    assert {row[0] for row in rows} == {number}
    losses = {(step, json.loads(values)["train/loss"]) for _, step, values in rows if b"train/loss" in _bytes(values)}
    assert losses == {(step, step / 2) for step in (1, 2, 3, 4)}


def _bytes(values):
    return values if isinstance(values, bytes) else values.encode()


def test_the_random_numbers_of_a_run_are_left_alone(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trackers = Trackers(["tensorboard"], facts(tmp_path, nothing=None, many=[1, 2]))
    trackers.start(0)
    trackers.histogram("a", np.arange(9, dtype=np.float32), 1)
    trackers.close()
    assert torch.equal(before, torch.get_rng_state())
