"""Small real runs: an image tree drawn here, a tiny configuration, and the two commands as subprocesses."""

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddfnet.utils.cli import run
from tests.browser import chromium

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("cross", "disc", "grid", "ring", "stripes")

TINY = """
model: {{name: ddf_mul_resnet14_32px}}
data:
  root: {root}
  workers: 0
  input: {{size: 16, crop_pct: 1.0}}
augment: {{crop: pad, color_jitter: 0.2}}
loss: {{label_smoothing: 0.1}}
optim: {{lr: 0.05, clip_grad: 5.0}}
schedule: {{warmup_epochs: 1}}
train: {{epochs: 3, batch_size: 8, device_batch_size: 4}}
run: {{log_every: 1, tensorboard: false, device: cpu}}
"""


# Files of few tests that take minutes, slowest first. They start before all others: pytest-xdist starts files with few
# tests last, and then one of these runs by itself when all else is done.
LONG = ("tests/kernels/test_interpreter.py",)


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which need not be installed
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files in the order they start in: those of `LONG`, then by the number of their tests."""
    files = [item.nodeid.partition("::")[0] for item in items]
    counts, tests = Counter(files), list(zip(files, items, strict=True))
    tests.sort(key=lambda test: (LONG.index(test[0]) if test[0] in LONG else len(LONG), -counts[test[0]]))
    items[:] = [item for _, item in tests]


def draw(kind: str, rng: np.random.Generator, size: int = 18) -> Image.Image:
    y, x = np.mgrid[:size, :size] - rng.uniform(6, 12, (2, 1, 1))
    radius = np.hypot(x, y)
    shape = {
        "cross": (abs(x) < 2) | (abs(y) < 2),
        "disc": radius < 5,
        "grid": (x % 5 < 1.5) | (y % 5 < 1.5),
        "ring": abs(radius - 5) < 1.5,
        "stripes": y % 4 < 2,
    }[kind]
    color = rng.uniform(120, 255, 3)
    noise = rng.normal(0, 12, (size, size, 3))
    return Image.fromarray((shape[..., None] * color + 20 + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium for the pages of a module."""
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory) -> Path:
    """35 training and 25 validation images of 5 classes; neither 2 nor 3 divides 25."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 5)):
        for kind in CLASSES:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                draw(kind, rng).save(folder / f"{i}.png")
    return root


@pytest.fixture
def tiny_config(tmp_path, image_tree) -> Path:
    """A configuration of 12 steps that runs in about a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=image_tree))
    return path


def command(script: str, *arguments: str, processes: int = 1) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*start, str(ROOT / script), *map(str, arguments)]


def environment() -> dict[str, str]:
    # PYTHONUNBUFFERED: without buffers, as some machines have it, other things happen where output cannot be written.
    others = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PYTHONUNBUFFERED")
    env = {key: value for key, value in os.environ.items() if key not in others}
    return {**env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def launch(
    script: str, *arguments: str, processes: int = 1, cwd: Path = ROOT, timeout: float = 300
) -> subprocess.CompletedProcess:
    """Runs train.py or eval.py as a user would."""
    return subprocess.run(
        command(script, *arguments, processes=processes),
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def exit_code(main: Callable[[list[str]], int], arguments: list) -> int:
    """Exit code of a command's `main`, run as its script runs it, in this process."""
    with pytest.raises(SystemExit) as stop:
        run(lambda: main([str(argument) for argument in arguments]))
    return stop.value.code


@pytest.fixture(autouse=True)
def _no_log_stays():
    """A log that a test leaves open would write in a later one, to a stream that pytest has closed since."""
    yield
    logger = logging.getLogger("ddfnet")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # Two shared cores: more threads only make the tests wait for each other, and one gives the same bits each time.
    # For the whole session: fixtures of modules train networks, too.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
