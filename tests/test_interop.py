"""docs/guides/interop.md: its blocks run as they stand and do what the text says; and the segmentation example."""

import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

import ddfnet
from ddfnet.data.generated import render_digits
from ddfnet.utils.errors import UserError
from scripts import segmentation_example as example
from tests.conftest import ROOT

GUIDE = (ROOT / "docs/guides/interop.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder where `python scripts/make_data.py digits data/digits` was called."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("interop")
    render_digits(folder / "data" / "digits")
    return folder


@pytest.fixture
def block(folder, monkeypatch):
    """Runs a block of the guide, by its number, and returns its names."""
    monkeypatch.chdir(folder)

    def run(number):
        space = {}
        exec(compile(BLOCKS[number], "docs/guides/interop.md", "exec"), space)
        return space

    return run


def test_the_guide_has_the_blocks_tested_here():
    assert len(BLOCKS) == 4
    assert "python scripts/make_data.py digits data/digits\n" in GUIDE


def test_a_plain_loop_with_timms_preprocessing_gives_the_accuracy_of_the_zoo(block, capsys):
    space = block(0)
    assert (space["hits"], len(space["data"])) == (352, 359)
    assert capsys.readouterr().out == "352 of 359\n"


def test_weights_are_adapted_to_inputs_classes_and_outputs(block, capsys):
    space = block(1)
    assert "torch.Size([2, 10]) torch.Size([2, 4])" in capsys.readouterr().out
    assert space["backbone"].feature_info.channels() == [64, 64, 128, 256, 512]
    assert space["backbone"].feature_info.reduction() == [1, 1, 2, 4, 8]
    color = ddfnet.create_model("ddf_mul_resnet14_32px.digits", pretrained=True)
    torch.testing.assert_close(space["gray"].conv1.weight, color.conv1.weight.sum(1, keepdim=True))
    for adapted in (space["four"], space["backbone"]):
        torch.testing.assert_close(adapted.layer4[0].conv3.weight, color.layer4[0].conv3.weight)
    assert space["four"].fc.weight.shape == (4, 512)


def test_fine_tuning_learns_odd_and_even(block):
    space = block(2)
    data = space["ImageFolder"]("data/digits/val", space["transform"], target_transform=lambda label: label % 2)
    images, labels = next(iter(torch.utils.data.DataLoader(data, batch_size=len(data))))
    with torch.inference_mode():
        hits = space["model"].eval()(images).argmax(1) == labels
    assert hits.float().mean() > 0.9


def test_a_backbone_in_torchvisions_detector(block):
    space = block(3)
    assert set(space["losses"]) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(torch.isfinite(loss) for loss in space["losses"].values())
    conv = space["pyramid"].body.layer1[0].conv2.spatial_branch[0]  # the gradient passes through the DDFs
    assert conv.weight.grad.abs().max() > 0
    weights = ddfnet.create_model("ddf_mul_resnet14_32px.digits", pretrained=True).state_dict()
    torch.testing.assert_close(space["pyramid"].body.layer1[0].conv3.weight, weights["layer1.0.conv3.weight"])
    assert [set(found) for found in space["found"]] == [{"boxes", "labels", "scores"}] * 2


# --- the segmentation example -----------------------------------------------------------------------------------------


def call(*arguments):
    return example.main(example.parse_arguments([str(argument) for argument in arguments]))


def test_commands_of_the_guide_are_accepted():
    commands = re.findall(r"^python scripts/segmentation_example.py(.*)$", GUIDE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        example.parse_arguments(shlex.split(command))


def test_segmentation_runs(tmp_path, capsys):
    output = tmp_path / "new" / "image.png"
    assert call("--steps", 2, "--batch-size", 2, "--held-out", 4, "--output", output) == 0
    printed = capsys.readouterr().out
    assert re.search(r"mean IoU before: \d+\.\d %", printed)
    assert re.search(r"mean IoU after: \d+\.\d %", printed)
    image = np.asarray(Image.open(output))
    side = 3 * example.SIZE
    assert image.shape == (4 * side, 3 * side, 3)
    truth = image[::3, side : 2 * side : 3].reshape(-1, 3)
    assert {tuple(color) for color in truth} <= {tuple(color) for color in example.COLORS}


def test_every_level_and_every_step_up_is_trained():
    torch.manual_seed(0)
    backbone = ddfnet.create_model("ddf_mul_resnet14_32px", features_only=True, out_indices=(1, 2, 3, 4), stem_stride=2)
    model = example.Segmenter(backbone, channels=8, num_classes=5)
    logits = model(torch.randn(2, 3, 32, 64))
    assert logits.shape == (2, 5, 32, 64)
    assert sum(isinstance(module, ddfnet.DDFUp) for module in model.modules()) == 3
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    for part in (model.coarsest, *model.up, *model.lateral, *model.join, model.backbone.layer4):
        assert max(parameter.grad.abs().max() for parameter in part.parameters()) > 0


def test_images_are_drawn_with_their_labels():
    images, labels = example.batch_of(3, 8)
    assert images.shape == (8, 3, example.SIZE, example.SIZE)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(images, example.batch_of(3, 8)[0], rtol=0, atol=0)
    assert not torch.equal(images, example.batch_of(4, 8)[0])


def test_mean_iou_of_a_known_prediction():
    labels = torch.tensor([[[0, 0, 1, 1], [2, 2, 3, 3]]])
    predicted = torch.tensor([[[0, 1, 1, 1], [2, 2, 3, 3]]])
    model = torch.nn.Identity()  # logits are the one-hot prediction
    logits = torch.nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).float()
    assert example.mean_iou(model, logits, labels) == pytest.approx((1 / 2 + 2 / 3 + 1 + 1) / 4)


@pytest.mark.parametrize("options", [["--lr", 0], ["--output", "image.jpg"]])
def test_mistakes_are_named(options):
    with pytest.raises(UserError, match=options[0]):
        call(*options)


@pytest.mark.parametrize("options", [["--steps", 0], ["--seed", -1]])
def test_numbers_out_of_range_are_named(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(*options)
    assert stopped.value.code == 2
    assert f"{options[0]}: must be at least" in capsys.readouterr().err


@pytest.mark.slow
def test_segmentation_learns(tmp_path, capsys):
    assert call("--output", tmp_path / "image.png") == 0
    printed = capsys.readouterr().out
    before, after = (float(re.search(rf"mean IoU {when}: (\S+) %", printed)[1]) for when in ("before", "after"))
    assert before < 30
    assert after > 70
