"""Every YAML: it loads, its header is true, its network has the size the paper prints, and it takes two steps."""

import re

import pytest
import torch

from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.tasks.plan import plan_run
from scripts.paper.write_docs import MODERN, TABLES, Row, config_complexity, result_path
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
IMAGENET = 1_281_167
# What is no ImageNet experiment: shared parts, the digits, CIFAR-10, the small-scale study.
OTHERS = {"demo.yaml", "cifar10.yaml", "study/base.yaml", "study/cpu.yaml", "study/cpu_long.yaml", "study/gpu.yaml"}
EXPERIMENTS = sorted(
    path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if path.parent != CONFIGS / "base"
)
EXPERIMENTS = [name for name in EXPERIMENTS if name not in OTHERS and not name.startswith(("detection/", "depth/"))]
ROWS = [row for rows in TABLES.values() for row in rows if row.config]
# The printed count is that of another variant (see the row's note).
WRONG_IN_THE_PAPER = {("baselines/res2net50_14w_8s.yaml", "25.7")}


def test_every_experiment_is_in_a_table():
    listed = {row.config for row in ROWS} | {row.config for row in MODERN}
    assert listed == set(EXPERIMENTS)
    assert all(row.note for rows in TABLES.values() for row in rows if row.config is None)


def digits(value: float, like: str) -> str:
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.config}: {row.label}")
def test_sizes_are_those_the_paper_prints(row: Row):
    cost = config_complexity(CONFIGS / row.config)
    if row.parameters is not None and (row.config, row.parameters) not in WRONG_IN_THE_PAPER:
        assert digits(cost.parameters / 1e6, row.parameters) == row.parameters
    if row.flops is None:
        return
    if len(row.flops.partition(".")[2]) == 3:
        assert cost.printed / 1e9 == pytest.approx(float(row.flops), rel=0.001)
    else:  # the tables mix the conventions: SE-ResNet101's 7.8 B is plain, ResNeXt50's 4.3 B is not
        assert row.flops in (digits(cost.multiply_adds / 1e9, row.flops), digits(cost.printed / 1e9, row.flops))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_headers_are_true(name):
    text = (CONFIGS / name).read_text()
    header = dict(re.findall(r"^#   (\w+) +(.+)$", text, re.MULTILINE))
    assert f"--config configs/{name} data.root=" in header["command"]
    assert header["measured"].startswith("not measured") == (not result_path(name, ROOT / "docs/results").exists())
    cost = config_complexity(CONFIGS / name)
    assert header["model"].startswith(f"{cost.parameters / 1e6:.2f} M parameters; {cost.multiply_adds / 1e9:.3f} B ")
    assert f"({cost.printed / 1e9:.3f} B as papers count)" in header["model"]
    for row in ROWS:
        if row.config == name and row.top1 is not None:
            assert f"{row.retrained or row.top1} %" in header["paper"], row
    printed = [row for row in ROWS if row.config == name and row.flops]
    printed = max(printed, key=lambda row: len(row.flops), default=None)  # the one with the most digits
    if printed is not None:
        assert header["paper"].endswith(f"{printed.parameters} M parameters, {printed.flops} B FLOPs")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_configs_load_on_one_and_on_eight_processes(name):
    loaded = load_config(CONFIGS / name, ["data.root=unused"])
    assert loaded.ineffective_keys() == []
    one, eight = (plan_run(loaded.config, world_size=n, train_images=IMAGENET) for n in (1, 8))
    assert (one.lr, one.total_steps) == (eight.lr, eight.total_steps)


def test_rows_of_the_tables_share_one_recipe():
    sections = {}
    for row in ROWS:
        config = load_config(CONFIGS / row.config, ["data.root=unused"]).config
        recipe = config.model_dump(include={"augment", "loss", "optim", "schedule", "train"})
        sections[row.config] = recipe
        assert (config.data.input.train_size or config.data.input.size) == 224
    assert all(recipe == sections["ddf_resnet50.yaml"] for recipe in sections.values())


def shallower(name: str) -> list[str]:
    """The 50-layer baselines of the same kind as one of 101 layers: the same blocks by the same recipe, but fewer."""
    kind, found, _ = name.removeprefix("baselines/").partition("101")
    return [other for other in EXPERIMENTS if found and other.removeprefix("baselines/").startswith(f"{kind}50")]


STEPPED = [name for name in EXPERIMENTS if not (name.startswith("baselines/") and shallower(name))]


def test_what_takes_no_steps_is_a_deeper_baseline():
    assert {name: shallower(name) for name in set(EXPERIMENTS) - set(STEPPED)} == {
        "baselines/bam_resnet101.yaml": ["baselines/bam_resnet50.yaml"],
        "baselines/cbam_resnet101.yaml": ["baselines/cbam_resnet50.yaml"],
        "baselines/res2net101_26w_4s.yaml": ["baselines/res2net50_14w_8s.yaml"],
        "baselines/resnet101.yaml": ["resnet50.yaml"],
        "baselines/resnext101_32x4d.yaml": ["baselines/resnext50_32x4d.yaml"],
        "baselines/seresnet101.yaml": ["baselines/seresnet50.yaml"],
    }


@pytest.mark.parametrize("name", STEPPED)
def test_two_steps(name, image_tree, capsys):
    size = load_config(CONFIGS / name, ["data.root=unused"]).config.data.input
    sizes = ["data.input.size=40"] + ([] if size.train_size is None else ["data.input.train_size=32"])
    quick = ["data.workers=0", "run.device=cpu", "train.precision=fp32", "train.compile=false"]
    loaded = load_config(CONFIGS / name, [f"data.root={image_tree}", *sizes, *quick])
    assert train(loaded, dry_run=True) == 0
    out = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"step \d/2 +loss ([\d.]+)", out)]
    assert len(losses) == 2
    assert all(torch.isfinite(torch.tensor(losses)))
