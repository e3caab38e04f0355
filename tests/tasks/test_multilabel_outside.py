"""What leaves a multi-label run: reports, exported files, published folders with their card, pages."""

import csv
import json

import pytest
import torch

from ddfnet.checkpoint import read_weights, save_safetensors
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.evaluation.multilabel_images import FOUND, MISSED
from ddfnet.inference.export import ExportOptions, export
from ddfnet.inference.predict import predict, predict_images
from ddfnet.inference.publish import publish
from ddfnet.models.classifier import load_classifier
from ddfnet.tasks import load_config
from ddfnet.utils.errors import DataError
from scripts import predict as predict_script
from scripts.visualize.explore_images import open_subject
from tests.browser import page_data, unpacked
from tests.conftest import TINY

TAGS = {"cross": "cross", "disc": "disc|round", "grid": "grid", "ring": "round", "stripes": ""}
NAMES = ["cross", "disc", "grid", "round"]
THRESHOLD = 0.3


@pytest.fixture(scope="module")
def best(image_tree, tmp_path_factory):
    """The best.pt of a short run."""
    folder = tmp_path_factory.mktemp("tags")
    files = sorted(path.relative_to(image_tree).as_posix() for path in image_tree.glob("*/*/*.png"))
    lines = [f"{path},{TAGS[path.split('/')[1]]}" for path in files]
    (folder / "labels.csv").write_text("\n".join(["image,labels", *lines]))
    (folder / "tags.yaml").write_text(TINY.format(root=image_tree).replace("ddf_mul_resnet14_32px", "resnet14_32px"))
    options = [
        f"data.labels={folder / 'labels.csv'}", "data.multi_label=true", "loss.name=bce", "loss.label_smoothing=0",
        f"eval.threshold={THRESHOLD}", "train.epochs=4", "optim.lr=0.3", f"run.dir={folder / 'run'}",
    ]  # fmt: skip
    assert train(load_config(folder / "tags.yaml", options)) == 0
    return folder / "run" / "best.pt"


@pytest.fixture
def listed(image_tree, tmp_path):
    """The validation images as a list by itself."""
    path = tmp_path / "val.csv"
    rows = [(image, TAGS[image.parent.name]) for image in sorted((image_tree / "val").glob("*/*.png"))]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("image", "labels"), *rows])
    return path


def test_the_report_has_a_page_in_place_of_that_of_others(best, image_tree, tmp_path, capsys):
    folder = tmp_path / "report"
    folder.mkdir()
    for name in ("report.html", "confusion.png"):
        (folder / name).write_text("of other weights")
    report = evaluate_checkpoint(best, device="cpu", workers=0, output=folder, quiet=True)
    out = capsys.readouterr().out
    assert "predicted from 0.3 of the sigmoid on\n" in out
    assert "report.json, report.md, per_class.csv, report.html, calibration.png,\n  precision_recall.png\n" in out
    assert sorted(report.files) == sorted(path.name for path in folder.iterdir())
    assert "[report.html](report.html)" in (folder / "report.md").read_text()
    without = int((~report.truth.any(1)).sum())
    assert f"{len(report.truth)}, {without} of them without a class" in (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    data = page_data(page)
    assert data["names"] == NAMES
    assert [row["positives"] for row in data["rows"]] == [row.positives for row in report.rows]
    # What the page says of an image is what predict.py says of the file.
    loaded, labels = load_classifier(best), unpacked(data["items"]["label"]).astype(int)
    for at, name in enumerate(data["items"]["name"]):
        shown = unpacked(data["items"]["probability"])[at]
        assert shown == pytest.approx(predict(loaded, image_tree / "val" / name)[labels[at]].numpy(), abs=2e-3)
        true = set(TAGS[name.split("/")[0]].split("|")) - {""}
        kinds = unpacked(data["items"]["kind"])[at]
        assert {NAMES[label] for label, kind in zip(labels[at], kinds, strict=True) if kind in (FOUND, MISSED)} == true
    metrics = report.metrics
    for key in ("map_macro", "map_micro", "f1_macro", "f1_micro"):
        assert f"{metrics[key]:.1f} %" in page
        assert f"  {key:9}  {metrics[key]:9.2f} %\n" in out
    assert f"  loss       {metrics['loss']:9.4f}\n" in out
    assert "(EMA weights)" in page or "(raw weights)" in page
    assert "model weights" not in page + (folder / "report.md").read_text()
    assert "0.3 of the sigmoid" in page


def test_a_page_that_cannot_be_made_does_not_lose_the_report(best, tmp_path, capsys, monkeypatch):
    def fails(*args):
        raise MemoryError("no memory for it")

    monkeypatch.setattr("ddfnet.evaluation.multilabel_report.multilabel_html", fails)
    report = evaluate_checkpoint(best, device="cpu", workers=0, output=tmp_path / "report", quiet=True)
    assert report.files == ("report.json", "report.md", "per_class.csv", "calibration.png", "precision_recall.png")
    assert "report.html" not in (tmp_path / "report" / "report.md").read_text()
    assert "no report.html: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_exported_files_say_how_their_outputs_are_read(best, tmp_path, kind):
    if kind == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    path = tmp_path / ("net.pt2" if kind == "torch" else "net.onnx")
    assert all(comparison.agrees for comparison in export(ExportOptions(str(best), kind, output=path)))
    if kind == "torch":
        extra = {"ddfnet.json": ""}
        torch.export.load(path, extra_files=extra)
        about = json.loads(extra["ddfnet.json"])
    else:
        about = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(about["multi_label"]) == {"threshold": THRESHOLD}
    assert "before sigmoid (a class is predicted from 0.3 on)" in about["output"]
    assert json.loads(about["classes"]) == NAMES


def test_files_of_one_label_do_not_mention_it(tmp_path):
    options = ExportOptions("zoo:ddf_mul_resnet14_32px.digits", "torch", output=tmp_path / "net.pt2")
    export(options)
    torch.export.load(tmp_path / "net.pt2", extra_files=(extra := {"ddfnet.json": ""}))
    about = json.loads(extra["ddfnet.json"])
    assert "multi_label" not in about
    assert "before softmax" in about["output"]


def test_a_published_folder_is_multi_label_again(best, listed, image_tree, tmp_path):
    publish(str(best), folder := tmp_path / "hub")
    card = (folder / "README.md").read_text()
    assert "tags:\n- image-classification\n- timm\n- ddfnet\n- multi-label\n" in card
    assert "`model(image).sigmoid()`, and it is predicted from 0.3 on" in card
    assert "`python eval.py --checkpoint model.safetensors --data FILE.csv` (a list with the columns image and" in card
    assert "class folders" not in card
    config = json.loads((folder / "config.json").read_text())
    assert (config["multi_label"], config["label_names"]) == ({"threshold": THRESHOLD}, NAMES)
    published, own = load_classifier(folder), load_classifier(best)
    assert (published.threshold, published.classes) == (THRESHOLD, NAMES)
    image = image_tree / "val" / "disc" / "0.png"
    assert torch.equal(predict(published, image), predict(own, image))
    # The figures of the run, by the command of the card.
    how = {"device": "cpu", "workers": 0, "quiet": True}
    expected = evaluate_checkpoint(best, **how, output=tmp_path / "a")
    report = evaluate_checkpoint(folder / "model.safetensors", **how, data=listed, output=tmp_path / "b")
    assert report.metrics == expected.metrics
    assert evaluate_checkpoint(best, **how, data=listed, output=tmp_path / "c").metrics == expected.metrics


def test_a_file_without_its_run_asks_for_a_list(best, image_tree, tmp_path):
    weights = read_weights(best)
    save_safetensors(tmp_path / "w.safetensors", weights.state_dict, weights.meta, kind="model")
    for data in (None, image_tree):
        with pytest.raises(DataError, match=r"give best\.pt, or --data FILE\.csv, a list with the columns image and"):
            evaluate_checkpoint(tmp_path / "w.safetensors", device="cpu", workers=0, data=data)


def test_a_store_is_evaluated_as_the_files_are(best, listed, tmp_path):
    from scripts import prepare_images

    command = [listed, tmp_path / "store", "--multi-label", "--workers", "1", "--quiet"]
    assert prepare_images.main(list(map(str, command))) == 0
    how = {"device": "cpu", "workers": 0, "quiet": True}
    expected = evaluate_checkpoint(best, **how, data=listed, output=tmp_path / "a").metrics
    stored = evaluate_checkpoint(best, **how, data=tmp_path / "store", output=tmp_path / "b").metrics
    assert stored == expected


def test_training_from_a_store_is_that_from_the_files(best, image_tree, tmp_path):
    from scripts import prepare_images

    labels, store = best.parent.parent / "labels.csv", tmp_path / "store"
    command = [image_tree, store, "--labels", labels, "--multi-label", "--workers", "1", "--quiet"]
    assert prepare_images.main(list(map(str, command))) == 0
    multi = ("data.multi_label=true", "loss.name=bce", "loss.label_smoothing=0", "train.epochs=1")
    states = []
    for name, data in (("files", [f"data.labels={labels}"]), ("store", [f"data.root={store}"])):
        options = [*multi, *data, "schedule.warmup_epochs=0", f"run.dir={tmp_path / name}"]
        assert train(load_config(best.parent.parent / "tags.yaml", options)) == 0
        states.append(read_weights(tmp_path / name / "last.pt").state_dict)
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    # Weights of the files are evaluated on the store, whatever data.labels their run had.
    how = {"device": "cpu", "workers": 0, "quiet": True}
    one = evaluate_checkpoint(tmp_path / "files" / "last.pt", **how, data=store, output=tmp_path / "a").metrics
    two = evaluate_checkpoint(tmp_path / "store" / "last.pt", **how, output=tmp_path / "b").metrics
    assert one == two


@pytest.mark.parametrize("threshold", [None, 0.9, 0.01])
def test_predictions_are_all_classes_from_the_threshold_on(best, image_tree, capsys, threshold):
    image = image_tree / "val" / "disc" / "0.png"
    probabilities = predict(load_classifier(best), image)
    least = threshold or THRESHOLD
    expected = [NAMES[i] for i in probabilities.argsort(descending=True) if probabilities[i] >= least]
    (answer,) = predict_images(load_classifier(best), [image], top=4, threshold=threshold)
    assert [row["class"] for row in answer["predictions"]] == expected
    arguments = [str(image), "--checkpoint", str(best), "--json"]
    arguments += [] if threshold is None else ["--threshold", str(threshold)]
    assert predict_script.main(predict_script.parse_arguments(arguments)) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    assert [row["class"] for row in printed["predictions"]] == expected


def test_the_page_of_filters_names_all_predicted_classes(best, image_tree):
    image = image_tree / "val" / "disc" / "0.png"
    probabilities = predict(load_classifier(best), image)
    (shown,) = open_subject(str(best), [str(image)], model=None, data=None, size=0).images
    expected = [i for i in probabilities.argsort(descending=True).tolist() if probabilities[i] >= THRESHOLD]
    texts = [f"{NAMES[i]}, {100 * float(probabilities[i]):.1f} %" for i in expected]
    with torch.inference_mode():
        assert shown.label(shown.run()) == f"predicted: {'; '.join(texts) or 'no class'}"
    assert shown.label(torch.zeros(4)) == "predicted: no class"
