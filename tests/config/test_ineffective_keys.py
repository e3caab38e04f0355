"""Keys that do nothing beside the values of others: a note names both."""

import pytest

from ddfnet.tasks import load_config
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("overrides", "key", "reason"),
    [
        (["augment.color_jitter=0.3", "augment.rand_augment=rand-m7"], "augment.color_jitter", "rand_augment"),
        (["augment.color_jitter=0.3", "augment.trivial_augment=true"], "augment.color_jitter", "trivial_augment"),
        (["augment.crop=pad", "augment.scale=[0.5, 1]"], "augment.scale", "crop is pad"),
        (["augment.where=cpu", "augment.color_jitter=0"], "augment.where", "are off"),
        (["augment.erasing.count=2"], "augment.erasing.count", "erasing.p is 0"),
        (["augment.mixup_prob=0.5"], "augment.mixup_prob", "are 0"),
        (["augment.mixup_switch_prob=0.1", "augment.mixup=0.2"], "augment.mixup_switch_prob", "not both"),
        (["loss.bce_threshold=0.2"], "loss.bce_threshold", "loss.name is cross_entropy"),
        (["loss.name=bce", "loss.bce_threshold=0.2"], "loss.bce_threshold", "0 and 1 already"),
        (["eval.threshold=0.4"], "eval.threshold", "data.multi_label is false"),
        (["data.label_separator=;"], "data.label_separator", "data.multi_label is false"),
        (["distill={teacher: a.pt, kind: hard, temperature: 3}"], "distill.temperature", "distill.kind is hard"),
        (["loss.bce_sum=true"], "loss.bce_sum", "loss.name is cross_entropy"),
        (["loss.bce_pos_weight=2"], "loss.bce_pos_weight", "loss.name is cross_entropy"),
        (
            ["loss.name=bce", "loss.bce_threshold=0.2", "loss.label_smoothing=0.1"],
            "loss.label_smoothing",
            "bce_threshold makes the targets 0 and 1 again",
        ),
        (["optim.base_batch=512"], "optim.base_batch", "optim.lr is used"),
        (["optim.clip_mode=value"], "optim.clip_mode", "clip_grad is null"),
        (["optim.name=adamw", "optim.momentum=0.5"], "optim.momentum", "adamw has none"),
        (
            ["model.in_chans=1", "augment.color_jitter=0", "data.decoder=torchcodec"],
            "data.decoder",
            "images of 1 channel are decoded by Pillow",
        ),
        (["data.workers=0", "data.timeout=60"], "data.timeout", "data.workers is 0"),
        (["data.workers=0", "data.start_method=spawn"], "data.start_method", "data.workers is 0"),
        (["augment.mixup_mode=elem"], "augment.mixup_mode", "are 0"),
        (["schedule.patience=3"], "schedule.patience", "schedule.name is cosine"),
        (["schedule.power=2"], "schedule.power", "schedule.name is cosine"),
        (["schedule.name=tanh", "schedule.k_decay=2"], "schedule.k_decay", "schedule.name is tanh"),
        (["schedule.cycle_decay=0.1"], "schedule.cycle_decay", "schedule.cycles is 1"),
        (["schedule.warmup_prefix=true"], "schedule.warmup_prefix", "warmup_epochs is 0"),
        (["optim.base_scaling=sqrt"], "optim.base_scaling", "optim.lr is used"),
        (["train.early_stop=3"], "train.early_stop", "the run has 3 epochs"),
        (["train.early_stop=2", "eval.every=3"], "train.early_stop", "the run has one evaluation"),
        (["checkpoints.every_epochs=4"], "checkpoints.every_epochs", "the run has 3 epochs"),
        (["train.freeze=all_but_head", "optim.kwargs={layer_decay: 0.5}"], "optim.kwargs.layer_decay", "last layer"),
        (["train.freeze=all_but_head", "train.grad_checkpointing=true"], "train.grad_checkpointing", "no gradients"),
        (["train.freeze=all_but_head", "train.sync_bn=true"], "train.sync_bn", "keep their statistics"),
        (["augment.mixup=0.2", "augment.mixup_prob=0"], "augment.mixup", "augment.mixup_prob is 0"),
        (
            ["augment={mixup: 0.2, cutmix: 1, mixup_switch_prob: 1}"],
            "augment.mixup",
            "augment.mixup_switch_prob is 1, always cutmix",
        ),
        (
            ["train.freeze=all_but_head", "optim.clip_grad=0.1", "optim.clip_mode=agc"],
            "optim.clip_grad",
            "which optim.clip_mode=agc leaves as it is",
        ),
        (["schedule.warmup_lr=1e-5"], "schedule.warmup_lr", "warmup_epochs is 0"),
        (["schedule={name: step, milestones: [1, 3, 4.5]}"], "schedule.milestones", ": 3 and 4.5 is after the end, 3"),
        (
            ["schedule={name: step, milestones: [1.5, 2], warmup_epochs: 1, warmup_prefix: true}"],
            "schedule.milestones",
            ": 2 from the end of the warm-up (schedule.warmup_prefix), epoch 1, is after the end, 3 epochs",
        ),
        (["schedule={name: step, decay_epochs: 3}"], "schedule.decay_epochs", ": 3 is after the end, 3 epochs"),
        (
            ["schedule={name: step, decay_epochs: 2, warmup_epochs: 1, warmup_prefix: true}"],
            "schedule.decay_epochs",
            ": 2 from the end of the warm-up (schedule.warmup_prefix), epoch 1, is after the end, 3 epochs",
        ),
    ],
)
def test_keys_without_effect_are_said(minimal, overrides, key, reason):
    (note,) = load_config(minimal, overrides).ineffective_keys()
    assert note.startswith(f"note: {key} (command line) has no effect")
    assert reason in note


def test_all_keys_of_mixing_that_is_never_drawn_are_said_once(minimal):
    mixing = {"mixup": "0.2", "cutmix": "1", "cutmix_minmax": "[0.2, 0.5]", "mixup_mode": "elem"}
    mixing |= {"mixup_switch_prob": "1", "mixup_off_epoch": "2"}
    overrides = [f"augment.{key}={value}" for key, value in mixing.items()]
    assert load_config(minimal, [*overrides, "augment.mixup_prob=0"]).ineffective_keys() == [
        f"note: augment.{key} (command line) has no effect: augment.mixup_prob is 0"
        for key in ("mixup", "cutmix", "cutmix_minmax", "mixup_mode", "mixup_switch_prob", "mixup_off_epoch")
    ]
    notes = load_config(minimal, [*overrides, "augment.mixup_switch_prob=0"]).ineffective_keys()
    assert [note.split()[1] for note in notes] == ["augment.cutmix", "augment.cutmix_minmax"]


@pytest.mark.parametrize(
    ("schedule", "every", "counted"),
    [
        ("patience: 10", 1, "has 3"),
        ("patience: 0", 2, "has 2"),
        ("patience: 0, warmup_epochs: 2", 1, "has 2 after the warm-up"),
        ("patience: 0, warmup_epochs: 1", 1, ""),
        ("patience: 0", 1, ""),
    ],
)
def test_a_plateau_that_never_lowers_the_rate_is_said(minimal, schedule, every, counted):
    loaded = load_config(minimal, [f"schedule={{name: plateau, {schedule}}}", f"eval.every={every}"])
    notes = [note for note in loaded.notes if "stays constant" in note]
    assert loaded.ineffective_keys() == []
    assert len(notes) == bool(counted)
    assert all(note.endswith(counted) for note in notes)


def test_effective_and_unwritten_keys_are_not_noted(minimal):
    assert load_config(minimal).ineffective_keys() == []
    for schedule in ("milestones: [1, 2.5]", "decay_epochs: 2.5", "decay_epochs: 2, warmup_epochs: 1"):
        assert load_config(minimal, [f"schedule={{name: step, {schedule}}}"]).ineffective_keys() == []
    agc = ["train.freeze=[conv1]", "optim.clip_grad=0.1", "optim.clip_mode=agc"]
    assert load_config(minimal, agc).ineffective_keys() == []
    for freeze in ("train.freeze=all_but_head", "train.freeze=[conv1]"):
        assert load_config(minimal, [freeze, "optim.clip_grad=0.1"]).ineffective_keys() == []
    assert load_config(minimal, ["train.freeze=[conv1]", "optim.kwargs={layer_decay: 0.5}"]).ineffective_keys() == []
    assert load_config(minimal, ["schedule={name: plateau, patience: 0}"]).ineffective_keys() == []
    assert load_config(minimal, ["augment={mixup: 0.2, cutmix: 1, mixup_switch_prob: 0.9}"]).ineffective_keys() == []
    assert load_config(minimal, ["data.decoder=torchcodec"]).ineffective_keys() == []
    assert load_config(minimal, ["data.decoder=pillow", "model.in_chans=1"]).ineffective_keys() == []
    assert load_config(minimal, ["augment.color_jitter=0.3", "optim.momentum=0.5"]).ineffective_keys() == []
    mixed = ["loss.name=bce", "loss.bce_threshold=0.2", "loss.label_smoothing=0.1", "augment.mixup=0.1"]
    assert load_config(minimal, mixed).ineffective_keys() == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_write_nothing_in_vain(path):
    assert load_config(path, ["data.root=somewhere"]).ineffective_keys() == []
