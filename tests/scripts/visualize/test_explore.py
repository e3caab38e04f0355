"""scripts/visualize explore: the page shows what the layers did, wherever the pointer is."""

import json

import numpy as np
import pytest
import torch

import ddfnet
from ddfnet.checkpoint import save_checkpoint
from ddfnet.models.classifier import load_classifier
from scripts.visualize import __main__ as visualize
from tests.browser import NARROW, WIDE, find, no_errors, page_data, unpacked, visit
from tests.conftest import exit_code
from tests.scripts.visualize.explored import check_layers

ARROW_LEFT, ARROW_DOWN = "\ue012", "\ue015"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    kwargs = {"heads": 2}
    model = ddfnet.create_model("ddf_add_resnet14_32px", num_classes=5, **kwargs)
    how = {"input_size": 32, "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    meta = {
        "task": "classification", "model": {"name": "ddf_add_resnet14_32px", "num_classes": 5, "kwargs": kwargs},
        "classes": ["<b>x", *"bcde"], "preprocessing": how, "precision": "fp32",
    }  # fmt: skip
    save_checkpoint(path, {"meta": meta, "model": model.state_dict(), "ema": None})
    return path


@pytest.fixture(scope="module")
def images(image_tree, tmp_path_factory):
    """Two files, one with markup in its name."""
    folder = tmp_path_factory.mktemp("images")
    hostile = folder / "<i>ring.png"
    hostile.write_bytes((image_tree / "val" / "ring" / "0.png").read_bytes())
    return [hostile, image_tree / "val" / "disc" / "1.png"]


@pytest.fixture(scope="module")
def page(checkpoint, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "new" / "explore.html"
    command = ["explore", checkpoint, *images, "--channels", 6, "--output", out]
    assert exit_code(visualize.main, command) == 0
    return out


def expected(checkpoint, image, name):
    """Input, spatial filters and channel filters of a layer, from the layer's own parts."""
    loaded = load_classifier(checkpoint)
    from ddfnet.data.batches import EvalBatchTransform
    from ddfnet.data.decode import open_rgb
    from ddfnet.data.preprocessing import eval_transform

    pixels = eval_transform(loaded.preprocessing)(open_rgb(image.read_bytes()))
    batch = EvalBatchTransform(loaded.preprocessing, device="cpu")({"image": pixels[None]})["image"]
    layer, inputs = loaded.network.get_submodule(name), []
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    with torch.inference_mode():
        loaded.network(batch)
        return inputs[0], layer.spatial_branch(inputs[0])[0], layer.channel_branch(inputs[0])[0]


def test_the_numbers_are_those_of_the_layers(page, checkpoint, images):
    shown = check_layers(page.read_text())
    assert [image["name"] for image in shown] == ["<i>ring.png", "1.png"]
    assert all(image["label"].startswith("predicted: ") for image in shown)
    for image, path in zip(shown, images, strict=True):
        assert [layer["name"] for layer in image["layers"]] == [f"layer{i}.0.conv2" for i in range(1, 5)]
        for layer in image["layers"]:
            x, spatial, channel = expected(checkpoint, path, layer["name"])
            count = layer["count"]
            assert (layer["k"], layer["combine"], count, len(layer["channels"])) == (3, "add", x.shape[1], 6)
            close = {"rtol": 2**-10, "atol": 1e-5}
            np.testing.assert_allclose(unpacked(layer["spatial"]).reshape(spatial.shape), spatial, **close)
            np.testing.assert_allclose(unpacked(layer["channel"]).ravel(), channel.ravel(), **close)
            np.testing.assert_allclose(unpacked(layer["x"]), x[0, layer["channels"]], **close)


def test_layers_and_names_can_be_chosen(checkpoint, images, tmp_path):
    out = tmp_path / "one.html"
    command = ["explore", checkpoint, images[1], "--layers", "layer2.0.conv2", "--output", out]
    assert exit_code(visualize.main, command) == 0
    (image,) = page_data(out.read_text())["images"]
    assert [layer["name"] for layer in image["layers"]] == ["layer2.0.conv2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IMAGE", "--layers", "layer9"], "--layers layer9: there are layer1.0.conv2, "),
        (["nowhere.png"], "image not found: nowhere.png"),
        (["IMAGE", "--data", "d"], "--data d is not used"),
        (["IMAGE", "--channels", "0"], "must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(checkpoint, images, tmp_path, arguments, message, capsys):
    out = tmp_path / "no.html"
    given = [str(images[1]) if argument == "IMAGE" else argument for argument in arguments]
    assert exit_code(visualize.main, ["explore", checkpoint, *given, "--output", out]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_network_without_filters_has_nothing_to_explore(images, tmp_path, capsys):
    torch.save(ddfnet.create_model("resnet14_32px", num_classes=5).state_dict(), tmp_path / "dense.pt")
    command = ["explore", tmp_path / "dense.pt", images[0], "--model", "resnet14_32px"]
    assert exit_code(visualize.main, command) == 2
    assert "no layer with filters for each pixel" in capsys.readouterr().err


def read(browser):
    (readout,) = find(browser, ".readout")
    values = {
        key: readout.get_attribute(f"data-{key}") for key in ("point", "spatial", "channel", "combined", "output")
    }
    return {key: json.loads(value) for key, value in values.items()} | {"sum": float(readout.get_attribute("data-sum"))}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_filter_under_the_pointer_is_shown(browser, page, checkpoint, images, width, dark):
    visit(browser, page, width=width, dark=dark)
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import Select

    assert "<i>ring.png" in find(browser, "figcaption")[0].text
    find(browser, ".strip button")[1].click()
    Select(find(browser, "#explorer-layer")[0]).select_by_index(1)
    Select(find(browser, "#explorer-head")[0]).select_by_index(1)
    (stage,) = find(browser, "#explorer-stage")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", stage)
    side = stage.size["width"]
    # to the middle of output pixel (12, 4) of 16 x 16
    ActionChains(browser).move_to_element_with_offset(
        stage, int((12.5 / 16 - 0.5) * side), int((4.5 / 16 - 0.5) * side)
    ).perform()
    seen = read(browser)
    assert seen["point"] | {"channel": 0} == {"x": 12, "y": 4, "channel": 0, "layer": "layer2.0.conv2"}
    c = seen["point"]["channel"]
    _, spatial, channel = expected(checkpoint, images[1], "layer2.0.conv2")
    count = channel.shape[0] // 9
    assert c >= count // 2  # of the second head
    head = spatial.unflatten(0, (2, 9))[1, :, 4, 12]
    own = channel.view(count, 9)[c]
    np.testing.assert_allclose(seen["spatial"], head, rtol=2**-10, atol=1e-5)
    np.testing.assert_allclose(seen["channel"], own, rtol=2**-10, atol=1e-5)
    np.testing.assert_allclose(seen["combined"], head + own, rtol=2**-9, atol=1e-5)
    assert seen["sum"] == pytest.approx(seen["output"], abs=0.02)

    stage.send_keys(ARROW_LEFT, ARROW_DOWN)
    moved = read(browser)["point"]
    assert (moved["x"], moved["y"]) == (11, 5)
    find(browser, "#explorer-channel")[0].send_keys(ARROW_LEFT)
    assert read(browser)["point"]["channel"] < c
    assert len(find(browser, ".maps figure")) == 4
    assert all(element.size["height"] > 100 for element in find(browser, ".maps .stage"))
    # Maps have structure: neither blank nor one color.
    colors = browser.execute_script("""return [...document.querySelectorAll('.maps canvas:first-child')].map((c) => {
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, seen = new Set();
        for (let i = 0; i < d.length; i += 4) seen.add(d[i] * 65536 + d[i + 1] * 256 + d[i + 2]);
        return seen.size; })""")
    assert min(colors) > 3
    no_errors(browser)


def test_a_touch_chooses_a_pixel(browser, page):
    visit(browser, page, width=NARROW)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    (stage,) = find(browser, "#explorer-stage")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", stage)
    box = browser.execute_script(
        "const b = arguments[0].getBoundingClientRect(); return [b.left, b.top, b.width]", stage
    )
    point = {"x": box[0] + 0.25 * box[2], "y": box[1] + 0.75 * box[2]}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    point = read(browser)["point"]
    assert (point["x"], point["y"]) == (8, 24)
