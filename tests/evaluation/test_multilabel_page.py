"""report.html of images with any number of labels: its numbers are those of the evaluation, and a reader finds which
labels fail and which images show why."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import ddfnet
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources.folder import index_folder
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.multilabel import Ranking, class_scores, mistakes_together, summary
from ddfnet.evaluation.multilabel_images import ALARM, FOUND, MISSED, NOTHING, OTHER, choose, decisions_of, item_data
from ddfnet.evaluation.multilabel_page import multilabel_html
from ddfnet.evaluation.page_parts import About
from tests.browser import NARROW, WIDE, click, find, no_errors, page_data, unpacked, visit

HOSTILE = '</script><b>cat & "dog"'
NAMES = ["plain", HOSTILE, "third", "absent"]
THRESHOLD = 0.5


def page_of(images, probability, truth, names, network=None, size=16):
    logits, truth = torch.logit(torch.as_tensor(probability, dtype=torch.float32)), torch.as_tensor(truth)
    predicted = (logits.sigmoid() >= THRESHOLD).numpy()
    scores = class_scores(logits.numpy(), truth.numpy(), predicted)
    metrics = summary(logits.numpy(), truth.numpy(), predicted, scores)
    about = About(
        images=images, names=names, network=network, precision="fp32", heading="network", subject="val",
        preprocessing=Preprocessing(size=size, crop_pct=1.0).to_dict(), facts=[("command", "eval.py")],
        results={**metrics, "threshold": THRESHOLD},
    )  # fmt: skip
    return multilabel_html(logits, truth, THRESHOLD, scores, about)


@pytest.fixture(scope="module")
def small(image_tree):
    """25 images, the last five without a label, six mistakes in five images."""
    index = index_folder(image_tree / "val")
    truth = np.zeros((25, 4), bool)
    truth[0:10, 0] = truth[5:15, 1] = truth[15:20, 2] = True
    probability = np.where(truth, 0.9, 0.1)
    probability[[5, 6, 7], 1] = 0.2, 0.3, 0.4  # missed
    probability[[5, 6], 2] = 0.8, 0.7  # in place of it
    probability[15, 2] = 0.05
    probability[20, 3] = 0.6
    return ImageSet("", index, NAMES), probability, truth


@pytest.fixture(scope="module")
def small_page(small, tmp_path_factory):
    torch.manual_seed(0)
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=4).eval()
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(*small, NAMES, network), encoding="utf-8")
    return path


def test_the_data_is_that_of_the_evaluation(small, small_page):
    images, probability, truth = small
    page = small_page.read_text()
    data = page_data(page)
    cells = {(a, b): n for a, b, n in unpacked(data["cells"]).tolist()}
    assert cells == {(1, 2): 2, (1, 4): 1, (2, 4): 1, (4, 3): 1, (4, 4): 20}
    assert data["nothing_missed"] == 21
    rows = data["rows"]
    assert [(r["positives"], r["predicted"], r["missed"], r["alarms"], r["negatives"]) for r in rows] == [
        (10, 10, 0, 0, 15), (10, 7, 3, 0, 15), (5, 6, 1, 2, 20), (0, 1, 0, 1, 25),
    ]  # fmt: skip
    assert rows[2]["f1"] == pytest.approx(8 / 11)
    assert (rows[3]["ap"], rows[3]["recall"], rows[3]["recall_interval"], rows[3]["precision"]) == (None, None, None, 0)
    assert data["list"] == [2, 1, 3]  # by F1, those of no image last
    assert "The label found worst: third" in page
    assert "missed in 1 of 5 images with it, a false alarm in 2 of 20 without it." in page
    assert "1 label of no image: what is not defined without one is a dash." in page
    assert HOSTILE not in page
    assert "25 images (5 without a label), each with any number of 4 labels" in page
    assert "Missed labels and false alarms in the same images" in page
    assert "Left out" not in page

    items = data["items"]
    kinds, labels, p = (unpacked(items[key]) for key in ("kind", "label", "probability"))
    row_of = {images.index.name(i).removeprefix(f"{images.index.root}/"): i for i in range(25)}
    rows_shown = [row_of[name] for name in items["name"]]
    assert {5, 6, 7, 15, 20} <= set(rows_shown)
    for at, i in enumerate(rows_shown):
        expected = [OTHER + FOUND * (t and q) + MISSED * (t and not q) + ALARM * (q and not t)
                    for t, q in zip(truth[i], probability[i] >= THRESHOLD, strict=True)]  # fmt: skip
        assert {int(label): int(kind) for label, kind in zip(labels[at], kinds[at], strict=True)} == dict(
            enumerate(expected)
        )
        assert p[at] == pytest.approx(probability[i][labels[at].astype(int)], abs=1e-3)
        assert (np.diff(p[at]) <= 0).all()
    assert [rows_shown[at] for at in data["top"]] == [5, 15, 6]
    assert [rows_shown[at] for at in data["missed"]] == [15, 5, 6, 7]
    assert [rows_shown[at] for at in data["alarms"]] == [5, 6, 20]
    assert len(data["thumbs"]) == len(items["name"])

    counts = data["calibration"]["counts"]
    assert sum(counts) == 100
    bins = [(probability > low / 15) & (probability <= (low + 1) / 15) for low in range(15)]
    gap = sum(abs((probability - truth)[of].sum()) for of in bins)  # in percent of 100 decisions
    assert f"Expected calibration error {gap:.2f} %" in page


def test_cells_without_room_are_said_to_be_left_out(small, monkeypatch):
    monkeypatch.setattr("ddfnet.evaluation.multilabel_page.MOST_CELLS", 2)
    images, probability, truth = small
    page = page_of(images, probability, truth, NAMES)
    assert unpacked(page_data(page)["cells"]).tolist() == [[4, 4, 20], [1, 2, 2]]
    assert "5 with a mistake. Left out, and empty here: 3 cells of at most 1 image." in page


def test_the_curve_encloses_the_average_precision():
    rng = np.random.default_rng(0)
    for levels in (5, 10_000):
        scores = (rng.integers(levels, size=200) / levels - 0.5).astype(np.float32)
        truth = rng.random(200) < 0.4
        scores[:20] *= 0  # 0 and -0 are equal
        ranking = Ranking.of(scores, truth)
        assert (np.diff(ranking.thresholds) < 0).all()
        assert {*ranking.thresholds.tolist()} == {*scores.tolist()}
        curve = ranking.curve(1000)
        area = (np.diff(curve[:, 2], prepend=0) * curve[:, 1]).sum()
        assert area == pytest.approx(ranking.average_precision)
        for threshold, precision, recall in curve:
            chosen = scores >= threshold
            assert precision == pytest.approx(truth[chosen].mean())
            assert recall == pytest.approx(chosen[truth].mean())
        f1 = {t: 2 * (truth & (scores >= t)).sum() / (truth.sum() + (scores >= t).sum()) for t in np.unique(scores)}
        assert ranking.best_f1 == pytest.approx((max(f1, key=lambda t: (f1[t], t)), max(f1.values())))
    few = ranking.curve(8)
    assert len(few) == 8
    assert (few[0] == curve[0]).all()
    assert (few[-1] == curve[-1]).all()
    assert Ranking.of(scores, np.zeros(200, bool)).curve(8).shape == (0, 3)
    nan = Ranking.of(np.array([np.nan, -np.inf, -np.nan, 1.0], np.float32), np.array([1, 0, 0, 1], bool))
    assert (str(nan.thresholds.tolist()), nan.hits.tolist()) == ("[1.0, -inf, nan]", [1, 1, 2])


def test_the_curve_and_the_table_agree_at_the_threshold(browser, small, tmp_path):
    """A probability just below the threshold, of which half precision makes 0.5; a label that nothing reaches."""
    images, _, _ = small
    truth, probability = np.zeros((25, 2), bool), np.full((25, 2), 0.1)
    truth[:4, 0] = truth[:3, 1] = True
    probability[:4, 0], probability[10, 0] = (0.9, 0.8, 0.49995, 0.2345678), 0.6
    probability[:3, 1] = 0.3, 0.2, 0.1
    path = tmp_path / "report.html"
    path.write_text(page_of(images, probability, truth, ["close", "below"]), encoding="utf-8")
    rows = page_data(path.read_text())["rows"]
    assert rows[0]["probability"] == [0.9, 0.8, 0.49995, 0.234567]  # none is above
    assert [(row["at"], row["found"], row["chosen"]) for row in rows] == [
        (1, [1, 2, 3, 4], [1, 2, 4, 5]), (None, [1, 2, 3], [1, 2, 25]),
    ]  # fmt: skip
    assert [row["best"] for row in rows] == [[0.234567, pytest.approx(8 / 9)], [0.2, pytest.approx(4 / 5)]]
    visit(browser, path)
    for name, legend, squares in (("close", "at the threshold 0.5", 1), ("below", "nothing reaches 0.5", 0)):
        button = next(button for button in find(browser, "#classes-body tbody button") if button.text == name)
        click(browser, button)
        assert legend in find(browser, "#dialog-body .legend")[0].text
        assert len(find(browser, "#dialog-body svg rect")) == squares
        if name == "close":
            assert "recall 50.0 %, F1 66.7 %" in find(browser, "#curve-readout")[0].text
        find(browser, "#dialog-close")[0].click()


def test_mistakes_are_counted_in_pairs():
    rng = np.random.default_rng(0)
    missed, alarms = rng.random((40, 3)) < 0.2, rng.random((40, 3)) < 0.3
    together = mistakes_together(missed, alarms)
    for a in range(4):
        for b in range(4):
            rows = missed[:, a] if a < 3 else ~missed.any(1)
            assert together[a, b] == (rows & (alarms[:, b] if b < 3 else ~alarms.any(1))).sum()


def test_of_many_labels_the_mistakes_are_kept(small):
    """An image with more labels than the page shows of one."""
    images, _, _ = small
    truth = np.zeros((1, 40), bool)
    truth[0, :20] = True
    probability = np.full((1, 40), 0.4, np.float32)
    probability[0, :15], probability[0, 35:] = 0.9, 0.7  # 15 found, 5 missed, 5 false alarms
    own = decisions_of(torch.logit(torch.tensor(probability)), torch.tensor(truth), THRESHOLD)
    data = {key: unpacked(value)[0] for key, value in item_data(own, images, [0]).items() if key != "name"}
    assert (data["true"], data["missed"], data["alarms"], len(data["label"])) == (20, 5, 5, 12)
    assert {*data["label"][data["kind"] == MISSED]} == {*range(15, 20)}
    assert {*data["label"][data["kind"] == ALARM]} == {*range(35, 40)}
    assert (data["kind"] == FOUND).sum() == 2
    assert choose(own, [15], []).top == [0]


def test_an_image_is_said_to_have_all_its_labels(browser, small, tmp_path):
    """Also those of which the page keeps no name beside the mistakes."""
    images, _, _ = small
    truth = np.zeros((3, 20), bool)
    truth[0, :3] = truth[1] = True
    probability = np.where(truth, 0.9, 0.1)
    probability[0, 3:17], probability[1] = 0.8, np.linspace(0.1, 0.2, 20)
    probability[2, 4] = 0.6
    path = tmp_path / "report.html"
    path.write_text(page_of(images, probability, truth, [f"L{i}" for i in range(20)]), encoding="utf-8")
    visit(browser, path)
    shots = {shot.text.split("\n")[0]: shot for shot in find(browser, "#mistakes-body .shot")}
    missed = "L11 · L10 · L9 · L8 · L7 · L6 · L5 · L4 · L3 · L2 · L1 · L0 and 8 more"
    assert {*shots} == {"true: 3 labels", f"true: {missed}", "true: no label"}
    assert f"missed: {missed}" in shots[f"true: {missed}"].text.split("\n")
    assert "and 2 more" in shots["true: 3 labels"].text.split("\n")[1]
    alts = [shot.find_element("css selector", "img").get_attribute("alt") for shot in shots.values()]
    assert {alt.split(",")[0] for alt in alts} == {"An image of 3 labels", "An image of L11", "An image of no label"}


# Texts that are wider than their place, which an ellipsis hides; scrollWidth is rounded and does not tell.
CUT = """return [...document.querySelectorAll(arguments[0])].filter((e) => {
    const text = document.createRange();
    text.selectNodeContents(e);
    return text.getBoundingClientRect().width > e.getBoundingClientRect().width + .01;
}).map((e) => e.textContent)"""


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_cards_cut_no_number_and_no_short_name(browser, small, tmp_path, width):
    images, _, _ = small
    truth = np.zeros((25, 3), bool)
    truth[:5, 0] = truth[:9, 1] = True
    probability = np.where(truth, 0.99999, 0.1)
    probability[:3, 0], probability[:2, 2] = 0.2, 0.99999
    path = tmp_path / "report.html"
    names = ["triangle", "green", "a long name of 3 words"]
    path.write_text(page_of(images, probability, truth, names), encoding="utf-8")
    visit(browser, path, width=width)
    click(browser, find(browser, "#classes-body tbody button")[0])
    for place in ("#mistakes-body", "#dialog-body"):
        assert "100.0 %" in browser.execute_script("return document.querySelector(arguments[0]).textContent", place)
        assert browser.execute_script(CUT, f"{place} .top .num") == []
        cut = {*browser.execute_script(CUT, f"{place} .top span:not(.num)")}
        assert cut <= ({"+ a long name of 3 words", "a long name of 3 words"} if width == WIDE else set())


def test_few_labels_of_an_image_are_not_padded_with_all(small):
    images, _, _ = small
    truth = np.zeros((1, 40), bool)
    truth[0, 7] = True
    own = decisions_of(torch.where(torch.tensor(truth), 3.0, -3.0), torch.tensor(truth), THRESHOLD)
    kind = unpacked(item_data(own, images, [0])["kind"])[0]
    assert ((kind == FOUND).sum(), (kind == OTHER).sum(), (kind == NOTHING).sum()) == (1, 4, 7)


def test_a_perfect_network_has_no_mistakes_to_show(small):
    images, _, truth = small
    page = page_of(images, np.where(truth, 0.9, 0.1), truth, NAMES)
    assert 'id="weakest"' not in page
    assert 'id="mistakes"' not in page
    assert len(page_data(page)["items"]["name"]) == 6  # two of each label that some image has


def test_a_network_that_answers_nan_has_a_page(small):
    images, probability, truth = small
    data = page_data(page_of(images, np.full_like(probability, np.nan), truth, NAMES))
    assert np.isnan(unpacked(data["items"]["probability"])).all()
    assert data["rows"][0]["missed"] == 10


def test_one_label(small):
    images, probability, truth = small
    page = page_of(images, probability[:, 2:3], truth[:, 2:3], NAMES[2:3])
    data = page_data(page)
    assert unpacked(data["cells"]).tolist() == [[1, 1, 22], [1, 0, 2], [0, 1, 1]]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_reader_finds_which_labels_fail_and_why(browser, small_page, width, dark):
    visit(browser, small_page, width=width, dark=dark)
    (weakest,) = find(browser, "#weakest")
    assert weakest.find_element("css selector", "h2").text == "The label found worst: third"
    shots = find(browser, "#top-shots .shot")
    for shot in shots:
        image = shot.find_element("css selector", "img")
        assert browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image) == 16
    first = shots[0].text.split("\n")
    assert f"true: plain · {HOSTILE}" in first
    assert f"missed: {HOSTILE}" in first
    assert "false alarm: third" in first
    assert "+ third" in first

    # The table sorts; what is not defined comes last either way, and is no zero.
    names = lambda: [cell.text for cell in find(browser, "#classes-body tbody td:first-child")]  # noqa: E731
    assert names()[0] == "absent"  # by F1, which false alarms make 0
    heads = find(browser, "#classes-body th button")
    for _ in range(2):
        click(browser, heads[3])
        assert names()[-1] == "absent"
    assert find(browser, "#classes-body tbody tr:last-child td:nth-child(4)")[0].text == "\u2013"
    find(browser, "#label-filter")[0].send_keys("cat &")
    assert names() == [HOSTILE]

    # A label opens its curve and its mistakes: by the keyboard, too.
    button = find(browser, "#classes-body tbody button")[0]
    button.send_keys("\ue007")  # enter
    assert find(browser, "dialog[open] h2")[0].text == HOSTILE
    dialog = find(browser, "#dialog-body")[0]
    assert "10 of n = 25 images have it; predicted for 7." in dialog.text
    assert "Missed in 3 of 10, the least probable first" in dialog.text
    assert [shot.get_attribute("data-item") for shot in find(browser, "#dialog-body .shot")] == [
        str(at) for at in (1, 2, 3)
    ]
    best = "The highest F1 is 100.0 %, from 0.2 on."
    assert find(browser, "#curve-readout")[0].text == (  # at the threshold
        f"Predicted from 0.9 of the sigmoid on: precision 100.0 %, recall 70.0 %, F1 82.4 %. {best}"
    )
    find(browser, "#curve-point")[0].send_keys("\ue014")  # arrow right
    assert find(browser, "#curve-readout")[0].text == (
        f"Predicted from 0.4 of the sigmoid on: precision 100.0 %, recall 80.0 %, F1 88.9 %. {best}"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    find(browser, "#dialog-close")[0].click()

    # A cell opens its images.
    click(browser, find(browser, '[data-cell="1,2"]')[0])
    assert find(browser, "dialog[open] h2")[0].text == f"missed: {HOSTILE}; false alarm: third; 2 of 10 images"
    assert len(find(browser, "#dialog-body .shot")) == 2
    find(browser, "#dialog-close")[0].click()
    click(browser, find(browser, '[data-cell="4,4"]')[0])
    assert find(browser, "dialog[open] h2")[0].text == "no mistake; 20 of 21 images"
    assert "true: no label" not in find(browser, "#dialog-body")[0].text
    find(browser, "#dialog-close")[0].click()

    # A label of no image.
    find(browser, "#label-filter")[0].clear()
    find(browser, "#label-filter")[0].send_keys("absent")
    click(browser, find(browser, "#classes-body tbody tr")[0])
    assert "No image has this label" in find(browser, "#dialog-body")[0].text
    assert "true: no label" in find(browser, "#dialog-body")[0].text
    find(browser, "#dialog-close")[0].click()

    # Calibration and filters by the keyboard.
    find(browser, "#calibration-body svg")[0].send_keys("\ue014")
    assert find(browser, "#calibration-body [role=status]")[0].text.startswith("Probability 0 % to 7 %: 1 decisions")
    stage = find(browser, "#filters-body-stage")[0]
    point = find(browser, "#filters-body .readout")[0].get_attribute("data-point")
    stage.send_keys("\ue014")
    assert find(browser, "#filters-body .readout")[0].get_attribute("data-point") != point
    no_errors(browser)


def test_fifty_thousand_images_of_many_labels(browser, tmp_path):
    rng = np.random.default_rng(0)
    n, labels = 50_000, 24
    truth = rng.random((n, labels)) < 0.035
    probability = 1 / (1 + np.exp(-rng.normal(np.where(truth, 1.0, -3.0), 1.5)))
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")

    class Noise:
        root = "/data/coco/val"

        def name(self, i):
            return f"{self.root}/{i:012d}.jpg"

        def read(self, i):
            return file.getvalue()

    page = tmp_path / "report.html"
    names = [f"label number {i}" for i in range(labels)]
    page.write_text(page_of(ImageSet("", Noise(), names), probability, truth, names, size=32), encoding="utf-8")
    assert page.stat().st_size < 25e6
    visit(browser, page)
    assert len(find(browser, "#classes-body tbody tr")) == labels
    field = find(browser, "#matrix-class")[0]
    field.clear()
    field.send_keys("(nothing missed)\n")
    assert find(browser, "#matrix-body tbody th")[0].text == "(nothing missed)"
    click(browser, find(browser, "#matrix-body tbody tr:first-child button:enabled")[1])
    assert len(find(browser, "#dialog-body .shot")) == 60
    visit(browser, page, width=NARROW, dark=True)
