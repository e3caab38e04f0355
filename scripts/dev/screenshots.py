#!/usr/bin/env python
"""Make the screenshots of docs/images with headless Chromium: report.html, the explorer, both on a phone, TensorBoard.

    python scripts/make_data.py digits data/digits
    python scripts/dev/screenshots.py --data data/digits
    python scripts/dev/screenshots.py --data data/digits --look FOLDER    # every page at every width and theme, too
    python scripts/dev/screenshots.py --detections    # detections.png alone, of the command in docs/guides/tasks.md
    python scripts/dev/screenshots.py --several-labels    # multilabel.png alone: report.html of images of shapes

Evaluates the shipped digits network, explores three digits, and trains the demo for three epochs. Needs selenium,
chromium, chromedriver and tensorboard. With --look nothing of docs/ is written. --detections trains a detector, 4
minutes of CPU, and needs pycocotools and matplotlib alone; --several-labels trains a classifier of shapes, and needs
selenium and Chromium. Exit code 2: bad arguments.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

from PIL import Image

from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.utils.cli import HelpFormatter, run
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import write_text
from scripts.visualize.explore import explore

WEIGHTS = "zoo:ddf_mul_resnet14_32px.digits"
IMAGES = ("8/0040.png", "3/0446.png", "5/0074.png")  # of the validation set
WIDE, NARROW = 1280, 390
TABS = ("scalars", "images", "histograms", "text", "hparams")
OVERFIT_EPOCHS = 40
SHAPES_EPOCHS = 8
TAB_SECONDS = 6  # TensorBoard draws when it likes


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of make_data.py digits")
    parser.add_argument("--detections", action="store_true", help="write detections.png and nothing else")
    parser.add_argument("--several-labels", action="store_true", help="write multilabel.png and nothing else")
    parser.add_argument("--look", type=Path, metavar="FOLDER", help="write all there, to be looked at")
    arguments = parser.parse_args(argv)
    if arguments.detections:
        with tempfile.TemporaryDirectory() as folder:
            detections(Path(folder), ROOT / "docs/images/detections.png")
        return 0
    if arguments.several_labels:
        with tempfile.TemporaryDirectory() as folder, browser() as driver:
            page = several_labels(Path(folder))
            (ROOT / "docs/images/multilabel.png").write_bytes(shot(driver, page.as_uri(), height=1330))
        return 0
    if arguments.data is None:
        raise UserError("give --data FOLDER, --detections or --several-labels")
    data = arguments.data.resolve()
    images = [path for name in IMAGES if (path := data / "val" / name).exists()]
    images += sorted((data / "val").glob("*/*.png"))[: len(IMAGES) - len(images)]
    if not images:
        raise UserError(f"--data {data} holds no digits: python scripts/make_data.py digits {data}")
    look_at = arguments.look and arguments.look.resolve()
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        os.chdir(folder)
        Path("data").symlink_to(data.parent)  # so that no page shows where this machine keeps it
        pages = {"report": Path("report/report.html"), "explorer": Path("explorer.html")}
        evaluate_checkpoint(WEIGHTS, data=f"data/{data.name}/val", output="report", device="cpu", workers=0, quiet=True)
        write_text(pages["explorer"], explore(WEIGHTS, [str(path) for path in images]))
        train("runs/demo", data)
        with tensorboard("runs") as address:
            if look_at is not None:
                look(driver, pages, address, look_at)
            else:
                document(driver, pages, address, ROOT / "docs/images")
        os.chdir(ROOT)
    return 0


def document(driver: Any, pages: dict[str, Path], address: str, out: Path) -> None:
    """Writes the images of the docs."""
    (out / "report.png").write_bytes(shot(driver, pages["report"].resolve().as_uri(), height=1330))
    (out / "explorer.png").write_bytes(shot(driver, pages["explorer"].resolve().as_uri(), height=1130, dark=True))
    both = [shot(driver, page.resolve().as_uri(), width=NARROW, height=1130) for page in pages.values()]
    beside = Image.new("RGB", (2 * NARROW + 20, 1130), "white")
    for column, png in enumerate(both):
        beside.paste(Image.open(io.BytesIO(png)), (column * (NARROW + 20), 0))
    beside.save(out / "narrow.png")
    (out / "tensorboard.png").write_bytes(shot(driver, f"{address}/#histograms", height=757, wait=TAB_SECONDS))


def look(driver: Any, pages: dict[str, Path], address: str, out: Path) -> None:
    """Writes every page, whole, at both widths, light and dark, and the tabs of TensorBoard."""
    out.mkdir(parents=True, exist_ok=True)
    for name, page in pages.items():
        for width in (WIDE, NARROW):
            for dark in (False, True):
                png = shot(driver, page.resolve().as_uri(), width=width, dark=dark)
                (out / f"{name}_{width}_{'dark' if dark else 'light'}.png").write_bytes(png)
    for tab in TABS:
        png = shot(driver, f"{address}/#{tab}", height=900, wait=TAB_SECONDS)
        (out / f"tensorboard_{tab}.png").write_bytes(png)


def shot(
    driver: Any, url: str, *, width: int = WIDE, height: int | None = None, dark: bool = False, wait: float = 0.5
) -> bytes:
    """A PNG of a page; height None: all of it."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": height or 900, "deviceScaleFactor": 1, "mobile": width == NARROW}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    driver.get(url)
    time.sleep(wait)
    whole = height or driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": whole, "scale": 1}
    options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"])


def train(folder: str, data: Path) -> None:
    """Three epochs of the demo."""
    changes = ["train.epochs=3", "schedule.warmup_epochs=1", "train.ema={decay: 0.9}", "run.trackers=[tensorboard]"]
    command = [sys.executable, str(ROOT / "train.py"), "--quiet", "--config", str(ROOT / "configs/demo.yaml")]
    subprocess.run([*command, f"data.root={data}", f"run.dir={folder}", *changes], check=True)


def detections(folder: Path, out: Path) -> None:
    """The overfit detector of docs/guides/tasks.md on four of its images."""
    shapes, run_folder = folder / "shapes", folder / "overfit"
    val = ["data.train_images=val", "data.train_annotations=annotations/val.json", f"train.epochs={OVERFIT_EPOCHS}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "train.py")]
    config = ["--quiet", "--config", str(ROOT / "configs/detection/shapes.yaml")]
    images = [str(shapes / "val" / f"{i:06d}.png") for i in range(4)]
    visualize = [sys.executable, str(ROOT / "scripts/visualize"), "detections", *images]
    for command in (
        [sys.executable, str(ROOT / "scripts/make_data.py"), "shapes", str(shapes), "--train", "60"],
        [*torchrun, *config, f"data.root={shapes}", *val, f"run.dir={run_folder}"],
        [*visualize, "--checkpoint", str(run_folder / "best.pt"), "--output", str(out)],
    ):
        subprocess.run(command, check=True)


def several_labels(folder: Path) -> Path:
    """report.html of a classifier that tells which shapes an image has, trained for a few epochs."""
    shapes, lines = folder / "data" / "shapes", ["image,labels"]
    make = [str(ROOT / "scripts/make_data.py"), "shapes", str(shapes)]
    subprocess.run([sys.executable, *make, "--train", "400", "--val", "100", "--size", "48"], check=True)
    for split in ("train", "val"):
        found = json.loads((shapes / "annotations" / f"{split}.json").read_text())
        names = {category["id"]: category["name"] for category in found["categories"]}
        for image in found["images"]:
            own = {names[one["category_id"]] for one in found["annotations"] if one["image_id"] == image["id"]}
            lines.append(f"{split}/{image['file_name']},{'|'.join(sorted(own))}")
    write_text(shapes / "labels.csv", "\n".join(lines))
    changes = ["data.root=data/shapes", "data.labels=labels.csv", "data.multi_label=true", "loss.name=bce"]
    changes += ["data.input.size=48", f"train.epochs={SHAPES_EPOCHS}", "run.dir=runs/shapes", "run.trackers=[]"]
    config = ["--quiet", "--config", str(ROOT / "configs/demo.yaml")]
    for command in (
        [sys.executable, str(ROOT / "train.py"), *config, *changes],
        [sys.executable, str(ROOT / "eval.py"), "--checkpoint", "runs/shapes/best.pt", "--output", "report"],
    ):
        subprocess.run(command, check=True, cwd=folder)  # so that the page does not show where this machine keeps it
    return folder / "report" / "report.html"


@contextlib.contextmanager
def tensorboard(folder: str) -> Iterator[str]:
    """The address of a server on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        folder,
        "--port",
        str(port),
        "--load_fast",
        "false",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(60):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=2).close()
                break
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        raise UserError("selenium is missing: pip install selenium") from None
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        raise UserError("chromium or chromedriver is missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


if __name__ == "__main__":
    run(main)
