"""Modern recipes: their values against their sources, the keys they need, and two of them run."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from ddfnet.data.sampler import TrainSampler
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.tasks.classification import ClassificationTask
from ddfnet.tasks.plan import plan_run
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "configs" / "modern").glob("*.yaml"))
IMAGENET = 1_281_167


def load(name, *overrides):
    return load_config(ROOT / "configs" / "modern" / f"{name}.yaml", ["data.root=somewhere", *overrides])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_on_one_and_on_eight_processes(path):
    loaded = load(path.stem)
    assert loaded.ineffective_keys() == []
    one, eight = (plan_run(loaded.config, world_size=n, train_images=IMAGENET) for n in (1, 8))
    assert one.accumulation == 8 * eight.accumulation
    assert (one.lr, one.total_steps) == (eight.lr, eight.total_steps)
    assert loaded.config.train.device_batch_size % 2 == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_headers_say_how_to_run_and_claim_no_measurement(path):
    header = path.read_text().split("base:")[0]
    values = dict(re.findall(r"^#   (\w+) +(.+)$", header, re.MULTILINE))
    assert list(values) == ["command", "reported", "measured", "model", "cost"]
    assert f"--config configs/modern/{path.name} " in values["command"]
    if path.stem.startswith("ddf"):
        assert "noth" in values["reported"]  # no figure of another network passes for one of DDF


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "magnitude", "repeats", "drop_path", "train_size"),
    [
        ("ddf_resnet50_a2", 300, 5e-3, 7, 3, 0.05, None),
        ("ddf_resnet50_a3", 100, 8e-3, 6, 1, 0.0, 160),
        ("resnet50_a3", 100, 8e-3, 6, 1, 0.0, 160),
    ],
)
def test_resnet_strikes_back(name, epochs, lr, magnitude, repeats, drop_path, train_size):
    """Table 2 of arXiv 2110.00476."""
    config = load(name).config
    assert (config.train.epochs, config.train.batch_size) == (epochs, 2048)
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("lamb", lr, 0.02)
    assert (config.schedule.name, config.schedule.warmup_epochs) == ("cosine", 5)
    assert (config.data.input.size, config.data.input.train_size, config.data.input.crop_pct) == (224, train_size, 0.95)
    assert (config.augment.mixup, config.augment.cutmix, config.augment.erasing.p) == (0.1, 1.0, 0.0)
    assert config.augment.rand_augment == f"rand-m{magnitude}-mstd0.5-inc1"
    assert (config.augment.repeats, config.model.drop_path_rate) == (repeats, drop_path)
    assert (config.loss.name, config.loss.label_smoothing) == ("bce", 0.0)
    assert config.optim.clip_grad is None
    assert config.train.ema is None


def test_torchvision_v2():
    """The arguments published for ResNet50_Weights.IMAGENET1K_V2."""
    config = load("ddf_resnet50_v2").config
    assert (config.train.epochs, config.train.batch_size, config.schedule.min_lr) == (600, 1024, 0.0)
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.5, 0.9, 2e-5)
    assert config.schedule.warmup_lr == pytest.approx(0.01 * config.optim.lr)
    assert (config.data.input.train_size, config.data.input.size) == (176, 224)
    assert math.floor(224 / config.data.input.crop_pct) == 232
    assert (config.augment.trivial_augment, config.augment.rand_augment, config.augment.repeats) == (True, None, 4)
    assert (config.augment.mixup, config.augment.cutmix, config.loss.label_smoothing) == (0.2, 1.0, 0.1)
    assert config.augment.erasing.model_dump() == {"p": 0.1, "mode": "const", "count": 1}
    alpha_of_32_steps = (1 - 0.99998) * 8 * 128 * 32 / 600
    assert config.train.ema.decay**32 == pytest.approx(1 - alpha_of_32_steps, abs=1e-6)
    assert not config.train.ema.warmup


def test_sizes_of_the_paper_recipe_at_160():
    at_160, paper = (
        load("ddf_resnet50_160_224").config,
        load_config(ROOT / "configs/ddf_resnet50.yaml", ["data.root=x"]),
    )
    assert at_160.data.input.train_size == 160
    for section in ("model", "augment", "loss", "optim", "schedule", "train"):
        assert getattr(at_160, section) == getattr(paper.config, section)


# --- the keys, through the task ---------------------------------------------------------------------------------------


def task_and_derived(tiny_config, *overrides, world_size=1):
    config = load_config(tiny_config, overrides).config
    task = ClassificationTask(config)
    return task, plan_run(config, world_size=world_size, train_images=task.train_images)


@pytest.mark.parametrize("crop", ["pad", "random_resized"])
@pytest.mark.parametrize("train_size", [12, 24])
def test_training_and_evaluation_have_their_own_size(tiny_config, crop, train_size):
    task, derived = task_and_derived(tiny_config, f"data.input.train_size={train_size}", f"augment.crop={crop}")
    cpu = torch.device("cpu")
    assert next(task.train_batches(derived, rank=0, start_step=0, device=cpu))["image"].shape[2:] == (train_size,) * 2
    assert next(iter(task.eval_batches(rank=0, world_size=1, device=cpu)))["image"].shape[2:] == (16, 16)
    assert task.meta()["preprocessing"]["input_size"] == 16


@pytest.mark.parametrize("repeats", [1, 3])
def test_sample_names_are_those_of_the_step(tiny_config, image_tree, repeats):
    task, derived = task_and_derived(tiny_config, f"augment.repeats={repeats}", world_size=2)
    for step in (0, 5):
        read = [
            i
            for rank in range(2)
            for batch in TrainSampler(
                length=35, global_batch=8, rank=rank, world_size=2, accumulation=1, seed=42,
                start_step=step, end_step=step + 1, repeats=repeats,
            )
            for _, i, _ in batch
        ]  # fmt: skip
        names = sorted(str(path) for path in (image_tree / "train").rglob("*.png"))
        assert sorted(task.sample_names(derived, step)) == sorted(names[i] for i in read)
        assert len(set(read)) in ({8} if repeats == 1 else {3, 4})  # 4: cut images at both ends of the step


def test_bce_threshold_makes_mixed_classes_whole(tiny_config):
    task, _ = task_and_derived(tiny_config, "loss={name: bce, bce_threshold: 0.2, label_smoothing: 0.0}")
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[0.7, 0.3, 0, 0, 0], [0, 0.85, 0, 0.15, 0], [0.2, 0, 0, 0, 0.8]])
    whole = torch.tensor([[1.0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]])
    loss = task.loss(lambda image: logits, {"image": torch.zeros(3), "target": target})["loss"]
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, whole))
    soft, _ = task_and_derived(tiny_config, "loss={name: bce, label_smoothing: 0.0}")
    loss = soft.loss(lambda image: logits, {"image": torch.zeros(3), "target": target})["loss"]
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, target))


# --- two of them, run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ddf_resnet50_a2", ["data.input.size=32"]),  # LAMB, BCE, repeats, stochastic depth
        ("ddf_resnet50_v2", ["data.input.size=48", "data.input.train_size=32"]),  # TrivialAugment, repeats, EMA
    ],
)
def test_dry_run(name, sizes, image_tree, tmp_path, capsys):
    overrides = [f"data.root={image_tree}", "data.workers=0", "run.device=cpu", "train.precision=fp32"]
    loaded = load(name, *sizes, *overrides, f"run.dir={tmp_path / 'run'}")
    assert train(loaded, dry_run=True) == 0
    out = capsys.readouterr().out
    assert "step 2/2" in out
    assert "no effect" not in out
    assert not (tmp_path / "run").exists()
