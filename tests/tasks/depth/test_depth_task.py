"""The depth task in the engine: every YAML of configs/depth, processes, resume, precision, evaluation."""

import json
import re
import subprocess
import sys

import pytest
import torch

from ddfnet.engine.signals import StopSignal
from ddfnet.engine.train import train
from ddfnet.tasks import create_task, load_config
from ddfnet.tasks.depth.network import DDFUpNet
from ddfnet.tasks.plan import plan_run
from ddfnet.utils.errors import ConfigError, DataError
from ddfnet.utils.files import read_jsonl
from tests.conftest import ROOT, launch
from tests.processes import launch_forked

CONFIGS = ROOT / "configs" / "depth"
EXPERIMENTS = {"ddf_up_net_x4": 4, "ddf_up_net_x8": 8, "ddf_up_net_x16": 16}
# Table 7, RMSE x 1e-2 m.
PAPER = {4: ("2.16", "8.16", "2.39"), 8: ("4.40", "14.22", "4.59"), 16: ("7.72", "22.32", "8.09")}
TINY = """
task: depth
model: {{channels: 8}}
data: {{root: {root}, format: folder, workers: 0, crop: 16, border: 2}}
optim: {{name: adam, lr: 2e-3, weight_decay: 0.0}}
train: {{epochs: 3, batch_size: 4, device_batch_size: 2}}
run: {{log_every: 1, tensorboard: false, device: cpu}}
"""


@pytest.fixture
def tiny(tmp_path, scene_tree):
    """A configuration of 6 steps."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=scene_tree))
    return path


def losses(folder):
    records = read_jsonl(folder / "metrics.jsonl")
    return torch.tensor([record["loss"] for record in records if record["kind"] == "train"], dtype=torch.float64)


def evaluations(folder):
    return [record for record in read_jsonl(folder / "metrics.jsonl") if record["kind"] == "val"]


def parameters(config):
    model = config.model
    net = DDFUpNet(config.data.factor, channels=model.channels, kernel_size=model.kernel_size)
    return sum(p.numel() for p in net.parameters())


# --- the shipped configurations ---------------------------------------------------------------------------------------


def test_all_files_are_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*EXPERIMENTS, "base", "scenes"}


@pytest.mark.parametrize("name", [*EXPERIMENTS, "scenes"])
def test_configs_load_on_one_and_on_two_processes(name):
    loaded = load_config(CONFIGS / f"{name}.yaml", ["data.root=unused", "train.device_batch_size=4"])
    assert loaded.ineffective_keys() == []
    one, two = (plan_run(loaded.config, world_size=n, train_images=1000) for n in (1, 2))
    assert (one.lr, one.total_steps) == (two.lr, two.total_steps)


@pytest.mark.parametrize(("name", "factor"), EXPERIMENTS.items())
def test_protocol_and_headers(name, factor):
    path = CONFIGS / f"{name}.yaml"
    config = load_config(path, ["data.root=unused"]).config
    assert config.data.factor == factor
    assert (config.data.format, config.data.crop, config.data.border) == ("nyu", 256, 6)
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("adam", 1e-4, 0.0)
    assert (config.train.epochs, config.train.batch_size) == (1500, 8)
    assert (config.schedule.name, config.schedule.milestones, config.schedule.gamma) == ("step", [1000, 1350], 0.1)
    header = dict(re.findall(r"^#   (\w+) +(.+)$", path.read_text(), re.MULTILINE))
    assert list(header) == ["command", "paper", "measured", "model", "cost"]
    assert f"--config configs/depth/{name}.yaml data.root=" in header["command"]
    ours, bicubic, pac_net = PAPER[factor]
    assert header["paper"] == f"RMSE {ours} cm (bicubic {bicubic}, PAC-Net {pac_net})"
    assert header["measured"].startswith("not measured")
    assert header["cost"].endswith("not measured")
    assert header["model"] == f"{parameters(config):,} parameters"


def test_header_of_the_demo():
    path = CONFIGS / "scenes.yaml"
    header = dict(re.findall(r"^#   (\w+) +(.+)$", path.read_text(), re.MULTILINE))
    assert header["model"] == f"{parameters(load_config(path).config):,} parameters"
    assert "make_data.py scenes data/scenes" in header["command"]
    assert "--config configs/depth/scenes.yaml" in header["command"]


@pytest.mark.parametrize("name", [*EXPERIMENTS, "scenes"])
def test_two_steps(name, scene_tree, nyu_file, capsys):
    root = scene_tree if name == "scenes" else nyu_file
    quick = ["data.crop=32", "data.workers=0", "run.device=cpu", "model.channels=8"]
    loaded = load_config(CONFIGS / f"{name}.yaml", [f"data.root={root}", *quick])
    assert train(loaded, dry_run=True) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"step \d/2 +loss [\d.]+", out)) == 2
    assert re.search(r"val  rmse [\d.]+ .*rmse_bicubic [\d.]+ .*n \d", out)


# --- the task ---------------------------------------------------------------------------------------------------------


def test_training_data_are_read_when_needed(tiny, scene_tree, tmp_path):
    (tmp_path / "val").symlink_to(scene_tree / "val")
    task = create_task(load_config(tiny, [f"data.root={tmp_path}"]).config)
    assert task.val_images == 5
    with pytest.raises(DataError, match="rgb is missing"):
        _ = task.train_images


def test_meta_rebuilds_the_network(tiny):
    task = create_task(load_config(tiny, ["data.factor=8", "model.kernel_size=5"]).config)
    meta = json.loads(json.dumps(task.meta()))
    assert meta["task"] == "depth"
    assert meta["preprocessing"]["phase"] == 3
    DDFUpNet(**meta["model"]["kwargs"]).load_state_dict(task.build_model().state_dict())


def test_loss_by_hand(tiny):
    task = create_task(load_config(tiny).config)
    low = torch.tensor([[[[1.0, 3.0]]], [[[2.0, 2.0]]]])  # spans 2 and, being flat, 1
    batch = {
        "low": low,
        "guidance": torch.zeros(2, 3, 2, 4),
        "depth": torch.ones(2, 1, 2, 4),
        "valid": torch.zeros(2, 1, 2, 4, dtype=torch.bool),
    }
    batch["depth"][0, 0, 1, 1] = float("nan")
    batch["valid"][0, 0, 0, :3] = True
    batch["valid"][1, 0, 1, 0] = True
    prediction = torch.full((2, 1, 2, 4), 1.5, requires_grad=True)
    loss = task.loss(lambda low, guidance: prediction, batch)["loss"]
    assert loss.item() == pytest.approx((3 * 0.25**2 + 0.5**2) / 4)
    loss.backward()
    assert prediction.grad.isfinite().all()
    assert (prediction.grad != 0).sum() == 4
    batch["valid"][:] = False
    assert task.loss(lambda low, guidance: prediction, batch)["loss"].item() == 0


def test_samples_of_a_step_are_named(tiny):
    task = create_task(load_config(tiny).config)
    derived = plan_run(task.config, world_size=1, train_images=task.train_images)
    names = task.sample_names(derived, 1)
    batches = task.train_batches(derived, rank=0, start_step=1, device=torch.device("cpu"))
    read = [int(i) for _ in range(2) for i in next(batches)["index"]]
    assert sorted(names) == sorted(task._train.name(i) for i in read)


def test_wrong_keys_are_named(tiny):
    for override, match in (
        ("data.crop=30", r"data\.crop=30 \(command line\) and data\.factor=4 .*multiple of the factor; use 28"),
        ("model.kernel_size=4", r"model\.kernel_size=4 .* must be odd: use 5"),
        ("data.factor=6", r"data\.factor=6 .* must be"),
    ):
        with pytest.raises(ConfigError, match=match):
            load_config(tiny, [override])
    with pytest.raises(ConfigError, match=r"model\.channels=2, .*squeeze"):
        create_task(load_config(tiny, ["model.channels=2"]).config).build_model()


# --- in the engine ----------------------------------------------------------------------------------------------------


def test_the_best_is_the_lowest_and_eval_agrees(tiny, tmp_path):
    folder = tmp_path / "run"
    assert train(load_config(tiny, [f"run.dir={folder}", "optim.lr=2e-2"])) == 0
    found = evaluations(folder)
    assert len({record["rmse"] for record in found}) == 3
    assert found[0]["rmse_bicubic"] == found[-1]["rmse_bicubic"]
    best = torch.load(folder / "best.pt", weights_only=True)["meta"]["metrics"]
    assert best["rmse"] == min(record["rmse"] for record in found)
    result = launch_forked("eval.py", "--checkpoint", folder / "best.pt", "--workers", "0", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "eval_best" / "report.json").read_text())
    assert {key: report[key] for key in best} == pytest.approx(best, rel=1e-6)


def test_two_processes_equal_two_micro_batches(tiny, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = ("eval.batch_size=1", "eval.every=3")
    assert train(load_config(tiny, [f"run.dir={one}", *options])) == 0
    result = launch_forked("train.py", "--config", tiny, f"run.dir={two}", *options, processes=2)
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(losses(two), losses(one), rtol=2e-5, atol=0)
    assert len(losses(one)) == 6
    for a, b in zip(evaluations(one), evaluations(two), strict=True):
        assert a["n"] == b["n"] == 5
        assert b["rmse"] == pytest.approx(a["rmse"], rel=1e-5)
        assert b["rmse_joint_bilateral"] == a["rmse_joint_bilateral"], "the same images, to the last bit"


def test_a_resumed_run_ends_with_the_same_bits(tiny, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ("run.save_every=1", "train.ema={decay: 0.9}", "data.baselines=false")
    assert train(load_config(tiny, [f"run.dir={whole}", *options])) == 0

    class Stop(StopSignal):
        """Asks to stop after the third step, as a signal would."""

        def agreed(self, step, *, save=False):
            return step == 3

    monkeypatch.setattr("ddfnet.engine.train.StopSignal", Stop)
    assert train(load_config(tiny, [f"run.dir={cut}", *options])) == 75
    monkeypatch.undo()
    assert train(load_config(tiny, [f"run.dir={cut}", *options])) == 0
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (whole, cut))
    assert a["step"] == b["step"] == 6
    for key in ("model", "ema"):
        assert all(torch.equal(a[key][name], b[key][name]) for name in a[key])
    assert a["best"] == b["best"]
    assert torch.equal(losses(whole), losses(cut))


def test_mixed_precision(tiny, tmp_path):
    full, half = tmp_path / "full", tmp_path / "half"
    for folder, precision in ((full, "fp32"), (half, "bf16")):
        options = [f"run.dir={folder}", f"train.precision={precision}", "train.epochs=1"]
        assert train(load_config(tiny, options)) == 0
    torch.testing.assert_close(losses(half), losses(full), rtol=0.02, atol=0)
    a, b = evaluations(full)[-1], evaluations(half)[-1]
    assert b["rmse"] == pytest.approx(a["rmse"], rel=0.02)
    assert {k: v for k, v in a.items() if "rmse_b" in k} == {k: v for k, v in b.items() if "rmse_b" in k}


@pytest.mark.slow
def test_demo_beats_the_methods_without_training(tmp_path):
    scenes, run = tmp_path / "scenes", tmp_path / "run"
    subprocess.run([sys.executable, str(ROOT / "scripts/make_data.py"), "scenes", str(scenes)], check=True)
    overrides = (f"data.root={scenes}", f"run.dir={run}")
    result = launch("train.py", "--config", CONFIGS / "scenes.yaml", *overrides, processes=2, timeout=1800)
    assert result.returncode == 0, result.stderr
    metrics = evaluations(run)[-1]
    assert metrics["n"] == 40
    assert metrics["rmse"] < metrics["rmse_guided_filter"] < metrics["rmse_bicubic"]
    assert metrics["rmse"] < 14
