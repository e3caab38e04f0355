"""report.html: its numbers are those of the predictions, its size stays bounded, and a reader can use it."""

import io
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import ddfnet
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources.folder import index_folder
from ddfnet.evaluation import page_images
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.page import report_html
from ddfnet.evaluation.page_parts import About
from ddfnet.evaluation.predictions import Predictions
from ddfnet.evaluation.statistics import Confusion, confused_both_ways, wilson_interval
from tests.browser import NARROW, WIDE, click, find, no_errors, page_data, unpacked, visit
from tests.conftest import CLASSES

HOSTILE = "</script><b>x"
NAMES = [CLASSES[0], HOSTILE, *CLASSES[2:]]  # that of the class in the headline


def predictions_of(target, predicted, *, classes, seed=0):
    """Top-5 with `predicted` first, the true class second where it was missed, and falling probabilities."""
    rng = np.random.default_rng(seed)
    n, most = len(target), min(5, classes)
    first = np.asarray(predicted)
    second = np.where(first == target, (first + 1) % classes, target)
    rest = [(np.maximum(first, second) + 1 + i) % classes for i in range(classes)]
    top = np.stack([first, second, *rest], 1)
    top = np.array([list(dict.fromkeys(row))[:most] for row in top.tolist()])
    confidence = rng.uniform(0.5, 0.99, n)
    shares = np.array([0.5, 0.25, 0.15, 0.1])[: most - 1]
    probabilities = np.concatenate([confidence[:, None], (1 - confidence)[:, None] * shares], 1)
    t = torch.tensor
    top, target = t(top), t(np.asarray(target))
    return Predictions(
        target, top, t(confidence), t(confidence), top == target[:, None], t(probabilities, dtype=torch.float32)
    )


def page_of(images, predictions, names, network=None, size=16, precision="fp32"):
    n, hits = len(predictions), int(predictions.correct.sum())
    results = {"n": n, "top1": 100 * hits / n, "top1_count": hits, "top5_count": int(predictions.correct5.sum())}
    about = About(
        images=images, names=names, network=network, precision=precision,
        preprocessing=Preprocessing(size=size, crop_pct=1.0).to_dict(), results={**results, "loss": 1.0, "note": ""},
        heading="network", subject="val", facts=[("command", "eval.py")],
    )  # fmt: skip
    return report_html(predictions, about)


@pytest.fixture(scope="module")
def small(image_tree):
    """25 images of 5 classes; the fourth class is taken for the second three times, the second once for the fourth."""
    index = index_folder(image_tree / "val")
    target = np.arange(25) // 5
    predicted = target.copy()
    predicted[[15, 16, 17]], predicted[5], predicted[0] = 1, 3, 4
    return ImageSet("", index, index.classes), predictions_of(target, predicted, classes=5)


@pytest.fixture(scope="module")
def small_page(small, tmp_path_factory):
    torch.manual_seed(0)
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5).eval()
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(*small, NAMES, network), encoding="utf-8")
    return path


def test_the_data_is_that_of_the_predictions(small, small_page):
    images, predictions = small
    page = small_page.read_text()
    data = page_data(page)
    assert unpacked(data["pairs"]).tolist() == [[3, 1, 3], [0, 4, 1], [1, 3, 1]]
    assert data["both"][0] == [3, 1, 4, 3, 1]
    assert [row["top1"] for row in data["rows"]] == [4, 4, 5, 2, 5]
    items = data["items"]
    target, top, correct = (unpacked(items[key]) for key in ("target", "top", "correct"))
    probability = unpacked(items["probability"])
    assert (correct == 0).sum() == 5
    for at, name in enumerate(items["name"]):
        (i,) = [i for i in range(25) if images.index.name(i).endswith(f"/{name}")]
        assert target[at] == predictions.target[i]
        assert top[at].tolist() == predictions.top[i].tolist()
        assert probability[at] == pytest.approx(predictions.probabilities[i].numpy(), abs=1e-3)
    assert len(data["thumbs"]) == len(items["name"])
    shown = {(int(target[i]), int(top[i][0])) for i in data["shown"]}
    assert shown == {(3, 1), (1, 3)}
    assert len(data["shown"]) == 3
    escaped = "&lt;/script&gt;&lt;b&gt;x"
    assert f"4 mistakes: 3 of 5 images of ring were predicted as {escaped}, 1 of 5 images of {escaped}" in page
    assert "25 images" in page
    assert "Left out" not in page
    assert HOSTILE not in page


def test_cells_without_room_are_said_to_be_left_out(small, monkeypatch):
    monkeypatch.setattr("ddfnet.evaluation.page.MOST_PAIRS", 1)
    page = page_of(*small, NAMES)
    assert unpacked(page_data(page)["pairs"]).tolist() == [[3, 1, 3]]
    assert "5 not on the diagonal. Left out, and empty here: 2 cells of at most 1 image." in page


def test_a_perfect_network_has_no_mistakes_to_show(small):
    images, _ = small
    target = np.arange(25) // 5
    page = page_of(images, predictions_of(target, target, classes=5), CLASSES)
    assert "most confused" not in page
    assert 'id="mistakes"' not in page
    assert 'id="filters"' not in page


def test_a_network_without_filters_has_none(small):
    images, predictions = small
    network = ddfnet.create_model("resnet14_32px", num_classes=5).eval()
    assert 'id="filters"' not in page_of(images, predictions, CLASSES, network)


def test_huge_filters_are_left_out(small, monkeypatch):
    images, predictions = small
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5).eval()
    monkeypatch.setattr(page_images, "FILTER_BYTES", 24 * (16 * 16 + 8 * 8 + 16 + 32))  # two layers of one image
    page = page_of(images, predictions, CLASSES, network)
    (shown,) = page_data(page)["filters"]
    assert [layer["name"] for layer in shown["layers"]] == ["layer1.0.conv2", "layer2.0.conv2"]
    assert "the first 2 of 4 layers, n = 1 image, computed in fp32 as the evaluation" in page


def test_filters_are_those_of_the_precision_of_the_evaluation(small):
    images, predictions = small
    torch.manual_seed(0)
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5).eval()
    taps = {}
    for precision in ("fp32", "bf16"):
        page = page_of(images, predictions, CLASSES, network, precision=precision)
        assert f"computed in {precision} as the evaluation" in page
        taps[precision] = unpacked(page_data(page)["filters"][0]["layers"][-1]["spatial"])
    assert 0 < np.abs(taps["fp32"] - taps["bf16"]).max() < 0.1
    as_bf16 = torch.tensor(taps["bf16"]).to(torch.bfloat16).double()
    assert (as_bf16 - torch.tensor(taps["bf16"])).abs().max() == 0  # 8 bits survive float16
    assert (torch.tensor(taps["fp32"]).to(torch.bfloat16).double() - torch.tensor(taps["fp32"])).abs().max() > 0


def test_a_network_that_answers_nan_has_a_page(small):
    images, predictions = small
    nan = torch.full_like(predictions.probabilities, float("nan"))
    lost = replace(predictions, probabilities=nan, confidence=nan[:, 0].double())
    data = page_data(page_of(images, lost, CLASSES))
    assert np.isnan(unpacked(data["items"]["probability"])).all()
    assert {row["confidence"] for row in data["rows"]} == {None}


def test_images_that_are_gone_are_missing(small, capsys):
    images, predictions = small

    class Gone:
        root, name = images.index.root, images.index.name

        def read(self, i):
            raise OSError(5, "gone")

    page = page_of(ImageSet("", Gone(), CLASSES), predictions, CLASSES)
    assert page_data(page)["thumbs"] == []
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5).eval()
    assert 'id="filters"' not in page_of(ImageSet("", Gone(), CLASSES), predictions, CLASSES, network)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    # 5 mistakes, and 3 correct images of each class, of which one has 2; what the filters ask for again counts once.
    assert told[0] == told[1]
    assert told[0].startswith("report.html lacks 19 images: image ")


def test_wilson_interval_by_its_definition():
    for hits, n in ((0, 10), (7, 10), (10, 10), (771, 1000)):
        low, high = wilson_interval(hits, n)
        for bound in (low, high):  # the bounds solve |p - hits/n| = z sqrt(p (1 - p) / n)
            assert (bound - hits / n) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / n, abs=1e-12)
        assert 0 <= low <= hits / n + 1e-12
        assert hits / n - 1e-12 <= high <= 1


def test_both_ways_are_added_once():
    pairs = [Confusion(3, 1, 5), Confusion(0, 2, 4), Confusion(1, 3, 4), Confusion(2, 0, 4), Confusion(7, 8, 1)]
    assert confused_both_ways(pairs) == [(3, 1, 9, 5, 4), (0, 2, 8, 4, 4), (7, 8, 1, 1, 0)]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_reader_finds_what_is_confused_and_why(browser, small_page, width, dark):
    visit(browser, small_page, width=width, dark=dark)
    (confused,) = find(browser, "#confused")
    assert f"ring and {HOSTILE}" in confused.find_element("css selector", "h2").text
    shots = find(browser, "#top-shots .shot")
    assert len(shots) == 3
    for shot in shots:
        image = shot.find_element("css selector", "img")
        assert browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image) == 16
        assert {"true: ring", f"predicted: {HOSTILE}"} <= {*shot.text.split("\n")} or f"true: {HOSTILE}" in shot.text

    # A cell opens its images.
    click(browser, find(browser, '[data-cell="3,1"]')[0])
    (dialog,) = find(browser, "dialog[open]")
    assert dialog.text.startswith(f"ring predicted as {HOSTILE}: 3 of 5")
    assert len(dialog.find_elements("css selector", ".shot")) == 3
    find(browser, "#dialog-close")[0].click()
    assert not find(browser, "dialog[open]")

    # The table sorts and filters.
    names = lambda: [row.text.split("\n")[0] for row in find(browser, "#classes-body tbody td:first-child")]  # noqa: E731
    assert names()[0] == "ring"
    click(browser, find(browser, "#classes-body th button")[0])
    assert names() == sorted(NAMES)
    find(browser, "#class-filter")[0].send_keys("T><B>")
    assert names() == [HOSTILE]
    click(browser, find(browser, "#classes-body tbody tr")[0])
    assert find(browser, "dialog[open] h2")[0].text == f"{HOSTILE}: 1 of 5 wrong"
    find(browser, "#dialog-close")[0].click()

    # Matrix and table are one tab stop each; the arrow keys go from cell to cell with images, and from row to row.
    focused = lambda: browser.switch_to.active_element  # noqa: E731
    for body in ("#matrix-body tbody", "#classes-body tbody"):
        stops = [button for button in find(browser, f"{body} button") if button.get_attribute("tabindex") == "0"]
        assert len(stops) == 1
    find(browser, '[data-cell="0,0"]')[0].send_keys("\ue014")  # right: (0, 1) to (0, 3) are empty
    assert focused().get_attribute("data-cell") == "0,4"
    focused().send_keys("\ue015")  # down: (4, 4) is the next below
    assert focused().get_attribute("data-cell") == "4,4"
    focused().send_keys("\ue015")  # there is none
    assert focused().get_attribute("data-cell") == "4,4"
    focused().send_keys("\ue007")  # enter
    assert find(browser, "dialog[open] h2")[0].text.startswith(f"{NAMES[4]}: 5 of 5 correct")
    focused().send_keys("\ue00c")  # escape: back to where it was
    assert not find(browser, "dialog[open]")
    assert focused().get_attribute("data-cell") == "4,4"
    find(browser, "#class-filter")[0].clear()
    find(browser, "#class-filter")[0].send_keys("i")
    row = find(browser, "#classes-body tbody button")[0]
    row.send_keys("\ue015")
    assert focused().text == names()[1] != row.text

    # The filters follow the keyboard.
    stage = find(browser, "#filters-body-stage")[0]
    before = find(browser, "#filters-body .readout")[0].get_attribute("data-point")
    stage.send_keys("\ue014")  # arrow right
    assert find(browser, "#filters-body .readout")[0].get_attribute("data-point") != before
    no_errors(browser)


def synthetic(n=50_000, classes=1000):
    """Images of 1000 classes, a fifth of them wrong, with incompressible content."""
    rng = np.random.default_rng(0)
    target = np.arange(n) * classes // n
    predicted = np.where(rng.random(n) < 0.8, target, (target + rng.integers(1, 6, n)) % classes)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(4)]

    class Noise:
        root = "/data/imagenet/val"

        def name(self, i):
            return f"{self.root}/n{target[i]:08d}/ILSVRC2012_val_{i:08d}.JPEG"

        def read(self, i):
            file = io.BytesIO()
            Image.fromarray(noise[i % 4]).save(file, "PNG")
            return file.getvalue()

    names = [f"class number {i}" for i in range(classes)]
    return ImageSet("", Noise(), names), predictions_of(target, predicted, classes=classes), names


@pytest.fixture(scope="module")
def large_page(tmp_path_factory):
    images, predictions, names = synthetic()
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=1000).eval()
    page = tmp_path_factory.mktemp("large") / "report.html"
    page.write_text(page_of(images, predictions, names, network, size=224), encoding="utf-8")
    return page


def test_fifty_thousand_images_stay_small(large_page):
    assert large_page.stat().st_size < 25e6
    data = page_data(large_page.read_text())
    assert len(data["rows"]) == 1000
    assert 9_000 < len(data["items"]["name"]) < 11_000  # a fifth, and some examples
    assert len(data["thumbs"]) == page_images.MOST_THUMBNAILS


def test_fifty_thousand_images_open(browser, large_page):
    page = large_page
    started = time.perf_counter()
    visit(browser, page)
    print(f"opened in {time.perf_counter() - started:.1f} s, {page.stat().st_size / 1e6:.1f} MB")
    assert len(find(browser, "#classes-body tbody tr")) == 1000
    assert find(browser, "#matrix-body .axis")[0].text.endswith("is confused with most, in both directions")
    field = find(browser, "#matrix-class")[0]
    field.clear()
    field.send_keys("class number 500\n")
    assert find(browser, "#matrix-body tbody th")[0].text == "class number 500"
    click(browser, find(browser, "#overview")[0])
    assert re.match(r"rows 49\d to 50\d, columns 49\d to 50\d of 1,000", find(browser, "#matrix-body .axis")[0].text)
    visit(browser, page, width=NARROW, dark=True)
