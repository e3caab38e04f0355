"""Configuration: inheritance, overrides, numbers, and errors that name the key and the fix."""

from pathlib import Path

import pytest

from ddfnet.checkpoint import read_weights
from ddfnet.config.sections import key_paths, names_elsewhere
from ddfnet.engine.run_folder import check_same_run
from ddfnet.optim import learning_rate
from ddfnet.tasks import check_config, load_config, task_class, task_names
from ddfnet.tasks.plan import plan_run
from ddfnet.utils.errors import CheckpointError, ConfigError
from tests.config.conftest import MINIMAL

ROOT = Path(__file__).parents[2]


def fails(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_values_defaults_and_origins(minimal):
    loaded = load_config(minimal, ["optim.momentum=0.5"])
    assert loaded.config.train.epochs == 3
    assert loaded.config.optim.momentum == 0.5
    assert loaded.config.run.dir == "runs/minimal"
    assert loaded.origins[("optim", "momentum")] == "command line"
    assert loaded.origins[("train", "epochs")] == f"{minimal}:5"


def test_bases_merge_in_order_and_the_file_wins(write):
    write("base/a.yaml", "optim: {lr: 0.1, momentum: 0.1}\ntrain: {epochs: 1, batch_size: 8, device_batch_size: 8}\n")
    write("base/b.yaml", "optim: {momentum: 0.2}\naugment: {scale: [0.5, 1.0]}\n")
    path = write(
        "c.yaml", "base: [base/a.yaml, base/b.yaml]\nmodel: {name: m}\ndata: {root: r}\noptim: {weight_decay: 1e-3}\n"
    )
    config = load_config(path).config
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.1, 0.2, 0.001)
    assert config.augment.scale == (0.5, 1.0)


def test_circular_base_is_named(write):
    write("a.yaml", "base: b.yaml\n")
    assert "a.yaml -> b.yaml -> a.yaml" in fails(write("b.yaml", "base: a.yaml\n").parent / "a.yaml")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("5e-05", 5e-5), (".1", 0.1), ("1", 1.0), ("1E2", 100.0), ("0.25", 0.25)]
)
def test_numbers_as_people_write_them(minimal, text, value):
    assert load_config(minimal, [f"optim.weight_decay={text}"]).config.optim.weight_decay == value


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optm.lr=1", ["unknown key optm.lr", "did you mean optim.lr?", "command line"]),
        ("optim.lrr=1", ["unknown key optim.lrr", "did you mean optim.lr?"]),
        ("optim.learning_rate=1", ["unknown key optim.learning_rate (command line); did you mean optim.lr?"]),
        ("img_size=32", ["unknown key img_size (command line); did you mean data.input.size?"]),
        ("train.random_erasing=0.1", ["did you mean augment.erasing.p?"]),
        ("batch-size=4", ["train.batch_size", "eval.batch_size"]),
        ("optim.LR=1", ["did you mean optim.lr?"]),
        ("dataset=x", ["did you mean data.root?"]),
        ("train.bs=3", ["did you mean train.batch_size?"]),
        ("resume=true", ["unknown key resume (command line); docs/reference/config.md lists all keys"]),
        ("run.device=gpu", ["did you mean cuda?"]),
        ("loss.name=ce", ["did you mean cross_entropy?"]),
        ("train.precision=float16", ["did you mean fp16?"]),
        ("data.num_workers=2", ["did you mean data.workers?"]),
        ("model.arch=resnet18", ["did you mean model.name?"]),
        ("loss.weights=[1, 2]", ["did you mean loss.class_weights?"]),
        ("data.classes=names.txt", ["did you mean data.class_names?"]),
        ("train.ema.decay_rate=0.9", ["did you mean train.ema.decay?"]),
        ("checkpoint=1", ["did you mean checkpoints?"]),
        ("train.checkpoint=true", ["did you mean train.grad_checkpointing?"]),
        ("distill={teacher: a.pt, weights: 1}", ["unknown key distill.weights", "did you mean distill.weight?"]),
        ("label_smoothing=0.1", ["did you mean loss.label_smoothing?"]),
        ("batch_size=4", ["train.batch_size", "eval.batch_size"]),
        ("train.epochs=many", ["train.epochs=many", "whole number"]),
        ("train.epochs=2.5", ["train.epochs=2.5", "whole number"]),
        ("train.epochs=0", ["train.epochs=0", "at least 1"]),
        ("run.tensorboard=yes", ["run.tensorboard='yes'", "true or false"]),
        ("run.trackers=[tensorbord]", ["run.trackers", "'tensorboard'", "'mlflow'", "did you mean tensorboard?"]),
        ("run.device=coda", ["run.device=coda", "did you mean cuda?"]),
        ("run={trackers: [tensorboard], tensorboard: false}", ["run.tensorboard=false", "contradict"]),
        ("profile.steps=5:3", ["profile.steps=5:3", "10:15"]),
        ("profile.steps=10-15", ["profile.steps=10-15 (command line) must be FIRST:END, e.g. 10:15"]),
        ("data.workers=-1", ["data.workers=-1", "at least 0", "auto"]),
        ("data.timeout=0", ["data.timeout=0", "greater than 0"]),
        ("data.timeout=.inf", ["data.timeout", "finite"]),
        ("run.device=metal", ["run.device=metal", "auto", "cuda", "cpu", "mps"]),
        ("data.start_method=thread", ["data.start_method=thread", "fork", "forkserver", "spawn"]),
        ("data.max_broken=0.1", ["data.max_broken (command line) is called data.max_corrupt now: rename it"]),
        ("train.freeze=layer1", ["train.freeze=layer1", "a list", "all_but_head"]),
        ("loss.class_weights=[1, -1]", ["loss.class_weights", "at least 0"]),
        ("loss.class_weights=inverse", ["loss.class_weights=inverse", "auto"]),
        ("data.multi_label=true", ["data.multi_label=true", "loss.name=cross_entropy", "loss.name=bce"]),
        ("data={multi_label: true, sampler: balanced}", ["loss.name=bce"]),
        ("eval.threshold=1", ["eval.threshold=1", "less than 1"]),
        ("data={labels: a.csv, source: tar}", ["data.labels", "data.source=tar"]),
        ("distill={teacher: a.pt, weight: 0}", ["distill.weight=0", "greater than 0"]),
        ("distill={weight: 0.5}", ["distill.teacher is required"]),
        ("train.early_stop=0", ["train.early_stop=0", "at least 1"]),
        ("schedule.name=polynomial", ["schedule.name=polynomial", "'poly'"]),
        ("schedule.name=step", ["schedule.name=step", "milestones or decay_epochs"]),
        ("schedule={name: step, milestones: [1], decay_epochs: 1}", ["contradict"]),
        ("schedule={name: plateau, cooldown_epochs: 1}", ["schedule.name=plateau", "cooldown_epochs"]),
        ("augment={cutmix_minmax: [0.2, 0.8]}", ["augment.cutmix_minmax", "set augment.cutmix=1"]),
        ("augment={cutmix: 1, cutmix_minmax: [0.8, 0.2]}", ["augment.cutmix_minmax", "[0.8, 0.2]"]),
        ("augment.mixup_mode=half", ["augment.mixup_mode=half", "elem"]),
        ("model.head_init_scale=-1", ["model.head_init_scale=-1", "at least 0"]),
        ("data.sampler=weighted", ["data.sampler=weighted", "balanced"]),
        ("train.precision=fp8", ["train.precision=fp8", "'bf16'"]),
        ("augment.scale=[1, 0.5]", ["augment.scale", "low <= high"]),
        ("augment.scale=[1,2,3]", ["augment.scale=[1, 2, 3]", "2 values"]),
        (
            "optim.base_lr=0.1",
            ["optim.lr=0.1 (", ".yaml:", "optim.base_lr=0.1 (command line) contradict", "(e.g. optim.lr=null)"],
        ),
        ("optim.lr=null", ["no learning rate"]),
        ("schedule.warmup_epochs=9", ["schedule.warmup_epochs=9", "train.epochs=3"]),
        ("augment.mixup_off_epoch=2", ["augment.mixup_off_epoch", "unset"]),
        ("train=3", ["train=3", "section", "e.g. train.epochs=VALUE"]),
        ("model=resnet50", ["model=resnet50 (command line) must be a section", "e.g. model.name=VALUE"]),
        ("train.ema=true", ["e.g. train.ema.decay=VALUE"]),
        ("run.trackers=wandb", ["must be a list: run.trackers=[wandb]"]),
        ("optim.lr=", ["optim.lr= has no value: give one, or optim.lr=null"]),
        ("optim", ["'optim'", "key.sub=value"]),
        ("optim.lr=[", ["optim.lr=["]),
        ("optim.lr=.inf", ["optim.lr", "finite"]),
        ("model.kwargs={num_classes: 3}", ["model.kwargs.num_classes", "model.num_classes"]),
        ("model.kwargs={pretrained: true}", ["model.kwargs.pretrained", "model.init_checkpoint"]),
        ("run.seed=-1", ["run.seed=-1", "at least 0"]),
        (
            "augment={rand_augment: rand-m7, interpolation: lanczos}",
            ["augment.interpolation=lanczos", "augment.rand_augment", "bicubic"],
        ),
        ("data.input.train_size=0", ["data.input.train_size=0", "at least 1"]),
        ("augment.repeats=0", ["augment.repeats=0", "at least 1"]),
        ("augment.repeats=1.5", ["augment.repeats=1.5", "whole number"]),
        ("loss.bce_threshold=0", ["loss.bce_threshold=0", "greater than 0"]),
        ("loss.bce_threshold=1.0", ["loss.bce_threshold=1.0", "less than 1"]),
        (
            "augment={trivial_augment: true, rand_augment: rand-m7}",
            ["augment.trivial_augment=true", "augment.rand_augment=rand-m7", "contradict", "(e.g. augment."],
        ),
        ("augment.where=gpu", ["augment.where=gpu", "auto", "device", "cpu"]),
        (
            "augment={where: device, rand_augment: augmix-m3}",
            ["augment.where=device", "augment.rand_augment=augmix-m3", "AugMix", "augment.where=cpu"],
        ),
        ("augment.rand_augment=rand-n16-tweights", ["augment.rand_augment=rand-n16-tweights", "16 of 15"]),
    ],
)
def test_mistakes_name_key_value_and_fix(minimal, override, parts):
    message = fails(minimal, override)
    for part in parts:
        assert part in message


def test_all_that_multi_label_refuses_is_told_at_once(minimal):
    refused = ["loss.label_smoothing=0.1", "data.sampler=balanced", "model.num_classes=9", "distill.teacher=a.pt"]
    message = fails(minimal, "data.multi_label=true", *refused)
    assert "5 faults" in message
    for one in ("loss.name=cross_entropy", *(f"{one} (command line)" for one in refused)):
        assert f"data.multi_label=true (command line) and {one} contradict: " in message


@pytest.mark.parametrize(
    ("base", "override", "start"),
    [
        ("schedule: {name: step, milestones: [1]}", "schedule.decay_epochs=2",
         "schedule.milestones=[1.0] ({file}) and schedule.decay_epochs=2 (command line) contradict: to use one, switch "
         "the other off (e.g. schedule.milestones=[])"),
        ("schedule: {min_lr: 0.01}", "schedule.name=constant",
         "schedule.name=constant (command line) and schedule.min_lr=0.01 ({file}) contradict: "),
        ("schedule: {decay_epochs: 3}", "schedule.name=poly",
         "schedule.name=poly (command line) and schedule.decay_epochs=3 ({file}) contradict: "),
        ("schedule: {milestones: [3, 2]}", "schedule.name=step", "schedule.milestones=[3.0, 2.0] ({file}) must rise"),
        ("schedule: {warmup_epochs: 5}", "train.epochs=4",
         "schedule.warmup_epochs=5 ({file}) and train.epochs=4 (command line) contradict: "),
        ("run: {tensorboard: false}", "run.trackers=[tensorboard]",
         "run.tensorboard=false ({file}) and run.trackers=[tensorboard] (command line) contradict: "),
        ("distill: {teacher: a.pt}", "data={multi_label: true}",
         "data.multi_label=true (command line) and distill.teacher=a.pt ({file}) contradict: "),
        ("loss: {class_weights: auto}", "data.sampler=balanced",
         "data.sampler=balanced (command line) and loss.class_weights=auto ({file}) together count small "
         "classes twice"),
        ("augment: {mixup: 0.2}", "train.device_batch_size=1",
         "augment.mixup=0.2 ({file}) and train.device_batch_size=1 (command line) contradict: "),
        ("augment: {where: device}", "augment.rand_augment=augmix",
         "augment.where=device ({file}) and augment.rand_augment=augmix (command line) contradict: AugMix has no "),
    ],
)  # fmt: skip
def test_keys_that_contradict_are_told_with_their_origins(write, base, override, start):
    path = write("t.yaml", f"{MINIMAL}\n{base}\n")
    file = f"{path}:{len(path.read_text().splitlines())}"
    assert start.replace("{file}", file) in fails(path, override)


def test_sections_tell_all_their_faults(minimal):
    message = fails(minimal, "augment={scale: [1, 0.5], ratio: [2, 1]}", "schedule.name=step", "optim.lr=null")
    assert "4 faults" in message
    for key in ("augment.scale=[1.0, 0.5]", "augment.ratio=[2.0, 1.0]"):
        assert f"{key} (command line) must be [low, high]" in message
    assert "schedule.name=step (command line) needs milestones or decay_epochs" in message
    assert "no learning rate: " in message


def test_all_faults_are_reported_at_once(minimal):
    message = fails(minimal, "optm.lr=1", "train.epochs=x", "foo=1")
    assert "3 faults" in message
    assert "optm.lr" in message
    assert "train.epochs=x" in message


def test_file_mistakes_name_file_and_line(write):
    assert "t.yaml:7" in fails(write("t.yaml", MINIMAL + "\nfoo: 1\n"))
    assert "given twice" in fails(write("twice.yaml", MINIMAL + "\nmodel: {name: x}\n"))
    assert "line 2" in fails(write("broken.yaml", "a: [1, 2\nb: 3: 4"))
    assert "not found" in fails(Path("nowhere.yaml"))
    assert "key: value" in fails(write("list.yaml", "- 1\n"))
    assert "model is required" in fails(write("empty.yaml", ""))


def test_python_tags_are_refused(write):
    assert "tag" in fails(write("tag.yaml", MINIMAL + "run: {dir: !!python/object/apply:os.getcwd []}\n"))


def test_resolved_yaml_reads_back_the_same(minimal, write):
    overrides = ["train.ema={decay: 0.5}", "model.kwargs={squeeze_ratio: 0.3}", "optim.weight_decay=1e-4"]
    loaded = load_config(minimal, overrides)
    text = loaded.to_yaml()
    assert "epochs: 3  # " in text
    assert "decay: 0.5  # command line" in text
    assert load_config(write("again.yaml", text)).config == loaded.config


def test_derived_arithmetic():
    config = check_config(
        {
            "model": {"name": "m"},
            "data": {"root": "r"},
            "optim": {"base_lr": 0.1},
            "schedule": {"warmup_epochs": 2, "cooldown_epochs": 1},
            "train": {"epochs": 10, "batch_size": 64, "device_batch_size": 8},
        }
    )
    derived = plan_run(config, world_size=2, train_images=1000)
    assert derived.accumulation == 4
    assert derived.lr == pytest.approx(0.025)
    assert (derived.steps_per_epoch, derived.warmup_steps) == (15, 30)
    assert (derived.schedule_steps, derived.total_steps) == (150, 165)


@pytest.mark.parametrize(
    ("world_size", "images", "fix"),
    [(16, 1000, "train.device_batch_size=4"), (3, 1000, "train.batch_size=63"), (2, 63, "at most 63")],
)
def test_batch_that_does_not_fit_names_the_fix(world_size, images, fix):
    config = check_config(
        {
            "model": {"name": "m"},
            "data": {"root": "r"},
            "optim": {"lr": 0.1},
            "train": {"epochs": 1, "batch_size": 64, "device_batch_size": 8},
        }
    )
    with pytest.raises(ConfigError, match=r"train\.batch_size=64") as caught:
        plan_run(config, world_size=world_size, train_images=images)
    assert fix in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load_and_say_how_to_run(path):
    config = load_config(path, ["data.root=somewhere"]).config
    assert config.train.batch_size % config.train.device_batch_size == 0
    header = path.read_text().split("\n\n")[0]
    assert f"configs/{path.name}" in header


def test_paper_recipe_is_the_released_one():
    config = load_config(ROOT / "configs/ddf_resnet50.yaml", ["data.root=x"]).config
    derived = plan_run(config, world_size=8, train_images=1_281_167)
    assert derived.lr == pytest.approx(0.4)
    assert derived.accumulation == 1
    assert derived.total_steps == 130 * 1251
    assert config.augment.rand_augment == "rand-m7-mstd0.5-inc1"
    assert config.augment.erasing.model_dump() == {"p": 0.4, "mode": "pixel", "count": 3}
    assert (config.loss.label_smoothing, config.optim.weight_decay, config.schedule.min_lr) == (0.1, 1e-4, 1e-5)


def test_a_schedule_above_its_peak_is_refused():
    config = check_config(
        {
            "model": {"name": "m"},
            "data": {"root": "r"},
            "optim": {"lr": 0.1},
            "schedule": {"min_lr": 10},
            "train": {"epochs": 1, "batch_size": 8, "device_batch_size": 8},
        }
    )
    with pytest.raises(ConfigError, match=r"schedule\.min_lr=10 is above the peak rate 0\.1"):
        plan_run(config, world_size=1, train_images=100)


def test_a_fall_within_a_step_is_refused(minimal):
    def derived(decay_epochs):
        config = load_config(minimal, [f"schedule={{name: step, decay_epochs: {decay_epochs}}}"]).config
        return config, plan_run(config, world_size=1, train_images=4 * config.train.batch_size)

    with pytest.raises(ConfigError, match=r"schedule\.decay_epochs=0\.1 .*an epoch has 4: set it to at least 0\.25"):
        derived(0.1)
    config, plan = derived(0.15)  # 0.6 steps
    rates = [learning_rate(step, config.schedule, plan) for step in range(3)]
    assert rates == pytest.approx([plan.lr, plan.lr / 10, plan.lr / 100])


def test_a_run_of_an_earlier_version_resumes_under_the_present_names(minimal, tmp_path):
    loaded = load_config(minimal, [f"run.dir={tmp_path}"])
    (tmp_path / "last.pt").touch()
    old = loaded.to_yaml().replace("max_corrupt", "max_broken")
    assert "max_broken" in old
    (tmp_path / "config.yaml").write_text(old)
    check_same_run(tmp_path, loaded)
    with pytest.raises(ConfigError, match=r"data\.max_corrupt: 0\.001 -> 0\.5"):
        check_same_run(tmp_path, load_config(minimal, [f"run.dir={tmp_path}", "data.max_corrupt=0.5"]))


def test_checkpoints_and_what_a_run_survives(minimal):
    config = load_config(minimal).config
    assert (config.checkpoints.keep, config.checkpoints.best, config.checkpoints.background) == (2, 1, True)
    assert (config.train.non_finite, config.train.deterministic, config.run.timeout) == ("stop", False, 1800.0)
    overrides = ["checkpoints.keep=-1", "checkpoints.best=0", "checkpoints.max_age=0", "train.non_finite=go_on"]
    faults = fails(minimal, *overrides, "run.timeout=0", "train.max_non_finite=-1")
    for fault in ("keep=-1", "best=0", "max_age=0", "non_finite=go_on", "run.timeout=0", "max_non_finite=-1"):
        assert fault in faults
    (note,) = load_config(minimal, ["train.max_non_finite=3"]).ineffective_keys()
    assert "train.max_non_finite (command line) has no effect: train.non_finite is stop" in note


def test_what_a_run_keeps_may_change_between_two_starts(minimal, tmp_path):
    loaded = load_config(minimal, [f"run.dir={tmp_path}"])
    (tmp_path / "last.pt").touch()
    (tmp_path / "config.yaml").write_text(loaded.to_yaml())
    free = ["checkpoints.keep=5", "checkpoints.best=3", "checkpoints.background=false", "train.non_finite=skip"]
    check_same_run(tmp_path, load_config(minimal, [f"run.dir={tmp_path}", *free]))
    with pytest.raises(ConfigError, match=r"checkpoints\.metric: None -> 'loss'"):
        check_same_run(tmp_path, load_config(minimal, [f"run.dir={tmp_path}", "checkpoints.metric=loss"]))


def test_files_that_are_not_there_get_the_nearest_name(tmp_path):
    (tmp_path / "shapes.yaml").write_text("base: dema.yaml\n")
    (tmp_path / "demo.yaml").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"config file not found: .*shape\.yaml; did you mean \S+/shapes\.yaml\?$"):
        load_config(tmp_path / "shape.yaml", [])
    with pytest.raises(ConfigError, match=r"shapes\.yaml: `base` dema\.yaml: there is no .* mean \S+/demo\.yaml\?$"):
        load_config(tmp_path / "shapes.yaml", [])
    with pytest.raises(CheckpointError, match=r"checkpoint not found: .*bst\.pt$"):
        read_weights(tmp_path / "bst.pt")
    (tmp_path / "best.pt").touch()
    with pytest.raises(CheckpointError, match=r"checkpoint not found: .*bst\.pt; did you mean \S+/best\.pt\?$"):
        read_weights(tmp_path / "bst.pt")


@pytest.mark.parametrize("task", task_names())
def test_names_of_other_trainers_lead_to_keys(task):
    schema = task_class(task).config_class
    keys = {".".join(path) for path, _ in key_paths(schema)}
    for other, key in names_elsewhere(schema):
        assert key in keys
        assert other not in {name.rsplit(".", 1)[-1] for name in keys}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("optim.lr=0.1 is high", "optim.lr=0.1 ({file}:4) is high"),
        ("train.epochs: many", "train.epochs (command line): many"),
        ("model.name, train.epochs=4: no", "model.name ({file}:2), train.epochs=4 (command line): no"),
        ("optim.momentum=0.9 is a default", "optim.momentum=0.9 is a default"),
        ("train.epochs=5 is not the value", "train.epochs=5 is not the value"),
        ("set train.epochs=4", "set train.epochs=4"),
        ("optim.kwargs={eps: 0.1}: no", "optim.kwargs={eps: 0.1} (command line): no"),
        ("train.epochs=40 is not the value", "train.epochs=40 is not the value"),
        ("data.train= is empty, train.epochs=4 is not", "data.train= is empty, train.epochs=4 is not"),
        ("model.nam is no key, optim.lr=0.1 is", "model.nam is no key, optim.lr=0.1 is"),
    ],
)
def test_errors_of_a_run_tell_where_its_keys_are_written(minimal, message, told):
    loaded = load_config(minimal, ["train.epochs=4", "optim.kwargs.eps=0.1"])
    assert loaded.told(message) == told.replace("{file}", str(minimal))
