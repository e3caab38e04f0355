"""Trackers: what each library keeps of a run, a resumed run, and one that fails."""

import importlib.util
import json
import os
import re
import struct
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

    def __init__(self, fails_at=None, *, purges=False):
        self.calls, self.fails_at, self.purges = [], fails_at, purges

    def rewind(self, step):
        assert self.purges
        self.calls.append(("rewind", step))

    def scalars(self, values, step):
        self.calls.append((values, step))
        if step == self.fails_at:
            raise ConnectionError("no route\nto host")

    def image(self, name, pixels, step):
        self.calls.append((name, step))

    def histogram(self, name, values, step):
        self.calls.append((name, step))

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
    assert good.calls == [*(({"train/loss": step / 2, "epoch": 0.5}, step) for step in (1, 2, 3, 4)), "finished"]
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


def log_steps(trackers, steps, evaluated=()):
    """What a run logs at these steps."""
    for step in steps:
        trackers.scalars("train", {"loss": step / 2}, step, step / 4)
        trackers.scalars("groups", {"lr/a": 0.1}, step, step / 4)
        if step in evaluated:
            trackers.scalars("val", {"top1": step}, step, step / 4)
            trackers.image("val/mistakes", np.zeros((2, 2, 3), np.uint8), step)
            trackers.histogram("filters_val/a/spatial", np.zeros(3, np.float32), step)


def logged(tracker, key):
    return [call[1] for call in tracker.calls if key == call[0] or (isinstance(call[0], dict) and key in call[0])]


@pytest.mark.parametrize("purges", [False, True])
def test_repeated_steps_come_once_or_after_a_purge(tmp_path, monkeypatch, purges):
    """Killed after step 9 and its evaluation, resumed behind step 8 twice, and rolled back within the last start."""
    every = []
    monkeypatch.setitem(LIBRARIES, "mlflow", lambda *_: every.append(Recorder(purges=purges)) or every[-1])

    def start(step, before):
        trackers = Trackers(["mlflow"], facts(tmp_path))
        trackers.start(step, before)
        return trackers, every[-1]

    log_steps(start(0, {})[0], range(1, 10), (4, 8, 9))
    trackers, second = start(8, {"train": 9, "val": 9})
    log_steps(trackers, (9,), (9,))
    trackers, third = start(8, {"train": 9, "val": 9})  # the file of records has forgotten nothing
    log_steps(trackers, range(9, 12))
    trackers.rewind(8)
    log_steps(trackers, range(9, 13), (12,))
    seen = {"train/loss": [10, 11, 12], "groups/lr/a": [10, 11, 12], "epoch": [10, 11, 12], "val/top1": [12],
            "val/mistakes": [12], "filters_val/a/spatial": [12]}  # fmt: skip
    if purges:
        seen |= {key: [9, 10, 11, 9, 10, 11, 12] for key in ("train/loss", "groups/lr/a", "epoch")}
        assert ("rewind", 8) in third.calls
    assert {key: logged(third, key) for key in seen} == seen
    assert logged(second, "train/loss") == logged(second, "val/mistakes") == ([9] if purges else [])
    assert all(logged(tracker, "epoch") == logged(tracker, "train/loss") for tracker in every)


def test_an_evaluation_that_a_start_makes_up_for_is_logged(tmp_path, monkeypatch):
    tracker = Recorder()
    monkeypatch.setitem(LIBRARIES, "mlflow", lambda *_: tracker)
    (tmp_path / "trackers.json").write_text(json.dumps({"mlflow": "7", "logged": {"train": 4, "val": 2}}))
    trackers = Trackers(["mlflow"], facts(tmp_path))
    trackers.start(4, {"train": 4, "val": 2})
    log_steps(trackers, (4, 5), (4,))
    assert (logged(tracker, "train/loss"), logged(tracker, "val/top1")) == ([5], [4])


def test_what_begins_at_step_0_is_a_new_run(tmp_path, monkeypatch):
    known, tracker = [], Recorder()
    monkeypatch.setitem(LIBRARIES, "mlflow", lambda facts, step, id: known.append(id) or tracker)
    (tmp_path / "trackers.json").write_text(json.dumps({"mlflow": "5", "logged": {"train": 9}}))
    trackers = Trackers(["mlflow"], facts(tmp_path))
    trackers.start(0, {"train": 9})
    log_steps(trackers, (1, 2))
    assert known == [None]
    assert logged(tracker, "train/loss") == [1, 2]


def test_one_that_is_new_in_the_run_folder_has_nothing_yet(tmp_path, monkeypatch):
    known, new = Recorder(), Recorder()
    monkeypatch.setitem(LIBRARIES, "mlflow", lambda *_: known)
    monkeypatch.setitem(LIBRARIES, "wandb", lambda *_: new)
    (tmp_path / "trackers.json").write_text(json.dumps({"mlflow": "7", "logged": {"train": 9}}))
    trackers = Trackers(["mlflow", "wandb"], facts(tmp_path))
    trackers.start(8, {"train": 9})
    log_steps(trackers, (9, 10))
    assert (logged(known, "train/loss"), logged(new, "train/loss")) == ([10], [9, 10])


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
    assert [event.step for event in found.Scalars("epoch")] == list(range(1, 13))
    assert [event.value for event in found.Scalars("epoch")][-1] == 3
    assert {"train/first_batch", "val/mistakes", "val_ema/mistakes"} == set(tags["images"])
    histograms = set(tags["histograms"])
    assert {"filters_val/layer1.0.conv2/spatial", "filters_val/layer1.0.conv2/channel"} <= histograms
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert re.search(r"^    model:$", text, re.MULTILINE)
    assert "      name: ddf_mul_resnet14_32px" in text
    metadata = pytest.importorskip("tensorboard.plugins.hparams.metadata")
    parameters = metadata.parse_experiment_plugin_data(
        found.summary_metadata["_hparams_/experiment"].plugin_data.content
    )
    names = [parameter.name for parameter in parameters.hparam_infos]
    keys = ["task", "run.dir", "model.name", "data.root", "optim.name", "schedule.name", "train.epochs"]
    assert sorted(keys, key=names.index) == keys  # as in the configuration; TensorBoard itself sorts them by name


def test_tensorboard_after_a_rollback_has_each_step_once(tmp_path):
    trackers = Trackers(["tensorboard"], facts(tmp_path))
    trackers.start(0, {})
    log_steps(trackers, range(1, 6), (4,))
    trackers.rewind(3)
    for step in (4, 5, 6):
        trackers.scalars("train", {"loss": 10 * step}, step, step / 4)
    trackers.close()
    values = [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")]
    assert values == [(1, 0.5), (2, 1), (3, 1.5), (4, 40), (5, 50), (6, 60)]
    assert [event.step for event in events(tmp_path).Scalars("epoch")] == [1, 2, 3, 4, 5, 6]


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
    """Two starts of one run, the second of which repeats a step and goes back once."""
    for first, last in ((0, 3), (2, 4)):
        trackers = Trackers([name], facts(folder))
        trackers.start(first, {"train": first and 3})
        for step in range(first + 1, last + 1):
            trackers.scalars("train", {"loss": step / 2}, step, step / 10)
            trackers.scalars("groups", {"lr/a": 1.0}, step, step / 10)
        if first:
            trackers.rewind(3)
            trackers.scalars("train", {"loss": 2.0}, 4, 0.4)
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
    for key, factor in (("train/loss", 0.5), ("epoch", 0.1)):
        history = client.get_metric_history(number, key)
        values = sorted((metric.step, metric.value) for metric in history)
        assert values == [(step, pytest.approx(step * factor)) for step in (1, 2, 3, 4)]
    assert {"config.yaml", "val"} <= {file.path for file in client.list_artifacts(number)}


@needs["wandb"]
def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    number = twice("wandb", tmp_path)
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(folder.name.endswith(number) and list(folder.glob("*.wandb")) for folder in folders)
    rows = [row for folder in sorted(folders) for row in wandb_rows(*folder.glob("*.wandb"))]
    assert [row["_step"] for row in rows] == [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["train/loss"] for row in rows] == [0.5, 1, 1.5, 2]


def wandb_rows(path):
    """The history in a file of wandb, row by row."""
    from wandb.proto import wandb_internal_pb2 as messages

    content, at, part = path.read_bytes(), 7, b""
    while at < len(content):  # as in LevelDB's logs: blocks of 32 KiB, in them pieces with a hash, a size and a kind
        if 0x8000 - at % 0x8000 < 7:
            at += 0x8000 - at % 0x8000
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        part, at = part + content[at + 7 : at + 7 + size], at + 7 + size
        if kind not in (1, 4):  # whole, or the last piece
            continue
        record, part = messages.Record.FromString(part), b""
        if record.WhichOneof("record_type") == "history":
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


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
    losses = [(step, json.loads(values)["train/loss"]) for _, step, values in rows if b"train/loss" in _bytes(values)]
    assert sorted(losses) == [(step, step / 2) for step in (1, 2, 3, 4)]


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
