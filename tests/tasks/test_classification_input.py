"""What `data.input` is where a configuration is silent."""

import logging
import shutil
from pathlib import Path

import pytest
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ddfnet.config.inheritance import read_with_bases
from ddfnet.tasks import check_config, create_task, load_config

ROOT = Path(__file__).resolve().parents[2]
SILENT = """
model: {name: vit_tiny_patch16_224}
data: {root: unused}
optim: {lr: 0.1}
train: {epochs: 1, batch_size: 8, device_batch_size: 8}
"""
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def load(tmp_path):
    def loaded(*overrides, text=SILENT):
        (tmp_path / "run.yaml").write_text(text)
        return load_config(tmp_path / "run.yaml", overrides)

    return loaded


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", {"mean": HALF, "std": HALF, "crop_pct": 0.9, "size": 224}),
        ("vit_tiny_patch16_384", {"mean": HALF, "crop_pct": 1.0, "size": 384}),  # built for one size
        ("resnet18.a1_in1k", {"mean": IMAGENET_DEFAULT_MEAN, "crop_pct": 0.95, "size": 224, "crop_mode": "center"}),
        ("resnet18.tv_in1k", {"interpolation": "bilinear", "crop_pct": 0.875}),
        ("convnext_tiny.fb_in22k_ft_in1k_384", {"crop_mode": "squash", "crop_pct": 1.0, "size": 224}),  # takes any
    ],
)
def test_it_is_that_of_the_models_record(load, name, expected):
    how = load(f"model.name={name}").config.data.input
    assert {key: getattr(how, key) for key in expected} == expected


def test_what_the_configuration_states_counts_and_a_note_names_both(load):
    loaded = load("data.input.mean=[0.1, 0.2, 0.3]", "data.input.size=160", "data.input.crop_pct=0.9")
    how = loaded.config.data.input
    assert (how.mean, how.std, how.size, how.crop_pct) == ((0.1, 0.2, 0.3), HALF, 160, 0.9)
    (line, note) = loaded.notes
    record = "timm's record of vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert note == f"note: data.input differs from {record}: mean [0.1, 0.2, 0.3] instead of [0.5, 0.5, 0.5]"
    assert "images: 160 px (command line), center crop 0.9 (command line), bicubic" in line
    assert "mean 0.1 0.2 0.3 (command line), std 0.5 0.5 0.5" in line
    assert line.endswith(f"; from {record}")


def test_null_is_not_stated(load):
    how = load("data.input={size: null, mean: null, train_size: null}").config.data.input
    assert (how.mean, how.size, how.train_size) == (HALF, 224, None)
    assert load("model.name=resnet18", "data.input.size=null").config.data.input.size == 224
    text = "data: {root: unused, input: {mean: [0.1, 0.2, 0.3]}}"
    (line,) = load("data.input.mean=null", text=SILENT.replace("data: {root: unused}", text)).notes
    assert "mean 0.5 0.5 0.5, std" in line


def test_the_origins_are_printed_and_kept_with_the_run(load):
    text = load().to_yaml()
    assert "mean: [0.5, 0.5, 0.5]  # timm's record of vit_tiny_patch16_224.augreg_in21k_ft_in1k" in text
    assert "resize: torch  # default" in text


@pytest.mark.parametrize("given", ["{size: 32, mean: [0.4, 0.4, 0.4], std: [0.5, 0.5, 0.5]}",
                                   "\n    size: 32\n    mean: [0.4, 0.4, 0.4]\n    std: [0.5, 0.5, 0.5]"])  # fmt: skip
def test_a_file_is_named_for_what_it_states_alone(load, given):
    text = SILENT.replace("vit_tiny_patch16_224", "resnet14_32px").replace("unused}", f"unused, input: {given}}}")
    if "\n" in given:
        text = text.replace("data: {root: unused, input: ", "data:\n  root: unused\n  input: ").replace(
            "}\noptim", "\noptim"
        )
    assert load(text=text).notes == (
        "images: 32 px, center crop 0.875 (ImageNet's usual), bicubic (ImageNet's usual), resize by torch, "
        "mean 0.4 0.4 0.4, std 0.5 0.5 0.5; from run.yaml",
    )


@pytest.mark.parametrize("name", ["ddf_mul_resnet50", "ddf_mul_resnet14_32px", "resnet14_32px"])
def test_models_of_ddfnet_that_start_at_random_have_imagenets_usual(load, name):
    loaded = load(f"model.name={name}")
    how = loaded.config.data.input
    assert (how.size, how.crop_pct, how.crop_mode, how.interpolation) == (224, 0.875, "center", "bicubic")
    assert (how.mean, how.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert loaded.notes == (
        "images: 224 px, center crop 0.875, bicubic, resize by torch, mean 0.485 0.456 0.406, std 0.229 0.224 0.225; "
        "from ImageNet's usual",
    )


def test_models_of_ddfnet_that_start_from_weights_have_those_of_the_weights(load):
    for overrides in (["model.name=ddf_mul_resnet14_32px.digits"],):
        how = load(*overrides).config.data.input
        assert (how.mean, how.crop_pct) == (HALF, 1.0)
    how = load("model.name=ddf_mul_resnet14_32px", "model.pretrained=true").config.data.input
    assert how.mean == (0.491, 0.482, 0.447)


def test_shipped_configurations_are_trained_as_before():
    """Without the records: what stands in the files, and ImageNet's usual."""
    compared = 0
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        values, _ = read_with_bases(path)
        if values.get("task", "classification") != "classification" or "model" not in values or "train" not in values:
            continue
        values.setdefault("data", {})["root"] = "unused"
        values.setdefault("run", {})
        if "name" not in values["model"]:
            continue
        plain = check_config(values).data.input
        assert load_config(path, ["data.root=unused"]).config.data.input == plain, path
        compared += 1
    assert compared > 20


def test_faults_of_a_configuration_are_told_as_before(load):
    for override, words in (
        ("data=3", "data=3"),
        ("data.input=3", "data.input=3"),
        ("model.name=3", "model.name=3"),
        ("model.name=resnet18.nonsense", None),
    ):
        if words is None:
            assert load(override).config.data.input.crop_pct == 0.875  # who builds the model refuses
            continue
        with pytest.raises(ValueError, match=words):
            load(override)


def test_a_checkpoint_stores_what_was_resolved(load, image_tree):
    loaded = load(f"data.root={image_tree}")
    assert loaded.config.model_dump(mode="json")["data"]["input"]["mean"] == [0.5] * 3
    meta = create_task(loaded.config).meta()
    assert (meta["preprocessing"]["mean"], meta["preprocessing"]["crop_pct"]) == ([0.5] * 3, 0.9)
    # One of before there were crop modes is the same.
    old = {**meta, "preprocessing": {key: v for key, v in meta["preprocessing"].items() if key != "crop_mode"}}
    assert create_task(loaded.config).present_meta(old) == meta


@pytest.mark.parametrize(("name", "told"), [("0.png", False), ("0.JPG", True)])
def test_the_decoder_of_jpegs_is_told_where_there_are_some(tiny_config, image_tree, tmp_path, caplog, name, told):
    tree = shutil.copytree(image_tree, tmp_path / "tree")
    next(tree.glob("val/*/0.png")).rename(tree / "val" / "disc" / name)
    task = create_task(load_config(tiny_config, [f"data.root={tree}"]).config)
    with caplog.at_level(logging.INFO, logger="ddfnet"):
        task.open_data(writes=False)
    assert ("JPEGs are decoded by" in caplog.text) is told
