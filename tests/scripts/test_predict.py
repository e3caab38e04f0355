"""predict.py: the classes that the network names, and mistakes told by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import ddfnet
from ddfnet.models.classifier import load_classifier
from ddfnet.utils.errors import DataError, UserError
from scripts import predict
from tests.processes import launch_forked

NAME = "ddf_mul_resnet14_32px"


def run(capsys, *arguments):
    assert predict.main(predict.parse_arguments([*map(str, arguments)])) == 0
    return capsys.readouterr().out


@pytest.fixture
def images(image_tree, tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    shutil.copy(image_tree / "val" / "ring" / "0.png", folder / "b.png")
    shutil.copy(image_tree / "val" / "disc" / "0.png", folder / "more" / "a.png")
    (folder / "notes.txt").touch()
    return folder


def test_a_folder_and_a_file_with_the_shipped_network(images, image_tree, capsys):
    other = image_tree / "val" / "grid" / "1.png"
    digits = ("--checkpoint", f"zoo:{NAME}.digits")
    answers = json.loads(run(capsys, images, other, *digits, "--json"))
    assert [answer["image"] for answer in answers] == [str(images / "b.png"), str(images / "more/a.png"), str(other)]
    loaded = load_classifier(digits[1])
    for answer in answers:
        image = Image.open(answer["image"]).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        pixels = torch.tensor(list(image.tobytes())).view(1, 32, 32, 3).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            expected = loaded.network((pixels - 0.5) / 0.5).softmax(1)[0].topk(5)
        rows = answer["predictions"]
        assert [row["class"] for row in rows] == [str(int(i)) for i in expected.indices]  # digits: name = place
        assert [row["probability"] for row in rows] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert "cat" in run(capsys, other, "--top", 10)  # without --checkpoint: CIFAR-10's classes
    text = run(capsys, images, *digits, "--top", 2)
    assert text.startswith(f"{NAME} of zoo:{NAME}.digits, 10 classes")
    assert text.count(" %  ") == 4
    best = answers[0]["predictions"][0]
    assert f"{images / 'b.png'}\n  {100 * best['probability']:6.2f} %  {best['name']}\n" in text


def test_a_thousand_classes_without_names_are_those_of_imagenet(images, tmp_path, capsys):
    model = ddfnet.create_model(NAME, num_classes=1000)
    with torch.no_grad():
        model.fc.bias[0] = 50.0
    torch.save({"state_dict": model.state_dict()}, tmp_path / "official.pth.tar")
    arguments = (images / "b.png", "--checkpoint", tmp_path / "official.pth.tar", "--model", NAME, "--top", 1)
    assert "  100.00 %  tench\n" in run(capsys, *arguments)
    (answer,) = json.loads(run(capsys, *arguments, "--json"))
    assert (answer["predictions"][0]["class"], answer["predictions"][0]["name"]) == ("n01440764", "tench")


def test_other_classes_without_names_are_numbered(images, tmp_path, capsys):
    torch.save(ddfnet.create_model(NAME, num_classes=3).state_dict(), tmp_path / "bare.pt")
    (answer,) = json.loads(
        run(capsys, images / "b.png", "--checkpoint", tmp_path / "bare.pt", "--model", NAME, "--json")
    )
    assert {row["name"] for row in answer["predictions"]} == {"output 0", "output 1", "output 2"}


def test_mistakes_are_named(images, tmp_path, capsys):
    def fails(kind, pattern, *arguments):
        with pytest.raises(kind, match=pattern):
            run(capsys, *arguments)

    (tmp_path / "empty").mkdir()
    fails(DataError, "nowhere.png does not exist", tmp_path / "nowhere.png")
    fails(DataError, "empty holds no images", tmp_path / "empty")
    fails(UserError, "--top must be at least 1, got 0", images, "--top", 0)
    fails(UserError, "--top 11: .* has 10 classes", images, "--top", 11)


def test_a_corrupt_image_ends_with_code_2_and_one_line(images):
    (images / "c.png").write_bytes((images / "b.png").read_bytes()[:60])
    result = launch_forked("scripts/predict.py", images, "--json")
    assert result.returncode == 2
    good = {Path(answer["image"]).name: "predictions" in answer for answer in json.loads(result.stdout)}
    assert good == {"b.png": True, "c.png": False, "a.png": True}  # the others are not lost
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"predict.py: error: image {images / 'c.png'} cannot be read")
