"""Images that are no whole number of patches: a note says what the network does not see."""

import pytest
import timm
import torch
from torch import nn

from ddfnet.checkpoint import save_checkpoint
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.inference.export import ExportOptions, export
from ddfnet.models.input_size import unseen_border
from ddfnet.tasks import load_config
from scripts.predict import main as predict
from scripts.predict import parse_arguments as parse_predict


@pytest.mark.parametrize(
    ("size", "seen"), [(48, None), (50, "48 x 48 of 50 x 50"), ((50, 64), "48 x 64 of 50 x 64"), ((32, 48), None)]
)
def test_what_is_said_is_what_is_cut_off(size, seen):
    shape = (size, size) if isinstance(size, int) else size
    network = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=shape, num_classes=3).eval()
    note = unseen_border(network, size)
    assert (f"patches of 16 x 16 pixels see {seen}: the last rows" in note) if seen else note == ""
    near = {50: "48 and 64", (50, 64): "48 x 64 and 64 x 64"}
    assert note == "" or note.endswith(f"; the nearest whole sizes are {near[size]}")
    image = torch.randn(1, 3, *shape)
    other = image.clone()
    other[:, :, shape[0] // 16 * 16 :] = other[:, :, :, shape[1] // 16 * 16 :] = 0
    with torch.no_grad():
        assert torch.equal(network(image), network(other))


def test_networks_without_patches_have_no_note():
    assert unseen_border(nn.Conv2d(3, 3, 3), 50) == ""
    assert unseen_border(timm.create_model("resnet10t"), 50) == ""


def test_who_evaluates_predicts_or_exports_reads_it(tmp_path, image_tree, capsys):
    network = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=48, num_classes=5)
    preprocessing = Preprocessing(size=48, mean=(0.5,) * 3, std=(0.5,) * 3).to_dict()
    meta = {
        "task": "classification", "classes": ["cross", "disc", "grid", "ring", "stripes"],
        "model": {"name": "vit_tiny_patch16_224", "num_classes": 5, "kwargs": {"depth": 1, "img_size": 48}},
        "preprocessing": preprocessing,
    }  # fmt: skip
    save_checkpoint(tmp_path / "vit.pt", {"meta": meta, "model": network.state_dict(), "ema": None})
    note = "note: patches of 16 x 16 pixels see 48 x 48 of 50 x 50: the last rows and columns"
    image = str(next(iter((image_tree / "val" / "ring").iterdir())))
    best = str(tmp_path / "vit.pt")
    commands = (
        lambda: evaluate_checkpoint(best, data=image_tree, input_size=50, output=tmp_path / "e"),
        lambda: predict(parse_predict([image, "--checkpoint", best, "--input-size", "50"])),
        lambda: export(ExportOptions(best, format="torch", output=tmp_path / "v.pt2", input_size=50)),
    )
    for command in commands:
        command()
        assert " ".join(capsys.readouterr().out.split()).count(note) == 1


def test_a_run_says_it(tiny_config, tmp_path, capsys):
    vit = ["model.name=vit_tiny_patch16_224", "model.kwargs={depth: 1}", "data.input.size=50"]
    train(load_config(tiny_config, [*vit, f"run.dir={tmp_path / 'run'}"]), dry_run=True)
    assert capsys.readouterr().out.count("see 48 x 48 of 50 x 50") == 1
