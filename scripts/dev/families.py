"""What works of a family of timm, a module of its registry: each step a user takes, with its smallest classifier."""

import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

import numpy as np
import timm
import torch
from PIL import Image
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.inference.export import ExportOptions, export
from ddfnet.inference.predict import predict
from ddfnet.models import create_model
from ddfnet.models.classifier import load_classifier
from ddfnet.models.input_size import size_argument
from ddfnet.tasks import load_config
from ddfnet.utils.errors import UserError

STEPS = ("train", "evaluate", "predict", "export")
SIDES = (64, 128, 112, 96)  # that are tried before a model's own: multiples of 16 and 32, of 14, of 48
# Arguments of families whose smallest network is too large for the memory of a small machine.
REDUCED: dict[str, dict[str, int]] = {"deepseek_vit": {"depth": 2}}  # 412 million parameters
CLASSES = ("a", "b")


@dataclass
class Outcome:
    """What became of the steps of one family; those that are absent were not reached."""

    family: str
    model: str = ""
    size: int = 0
    steps: dict[str, str] = field(default_factory=dict)  # "yes", or why not
    seconds: float = 0.0


def families() -> list[str]:
    """timm's modules of models, with those of this package."""
    return timm.list_modules()


def smallest(family: str) -> str:
    """The classifier of the fewest parameters; where a family has none, its smallest network."""
    sizes = []
    for name in timm.list_models(module=family, include_tags=False):
        cfg = get_pretrained_cfg(name)
        with torch.device("meta"):
            network = timm.create_model(name)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        sizes.append((not (cfg is None or cfg.num_classes), parameters, name))
    return min(sizes)[2]


def try_family(family: str, folder: Path, *, limit: int = 240) -> Outcome:
    """`steps_of` in a process of its own, as outside software may end it.

    Args:
        family: of `families()`.
        folder: an empty one, for images and runs.
        limit: seconds, after which the step that runs counts as failed.
    """
    notes = folder / "outcome.json"
    notes.write_text(json.dumps(asdict(Outcome(family))))
    child = os.fork()
    if not child:
        with open(folder / "log.txt", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            signal.alarm(limit)
            warnings.filterwarnings("ignore")
            steps_of(family, folder, lambda outcome: notes.write_text(json.dumps(asdict(outcome))))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    outcome = Outcome(**json.loads(notes.read_text()))
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        why = f"not done after {limit} seconds" if name == "SIGALRM" else f"the process was ended by {name}"
        outcome.steps[next(step for step in STEPS if step not in outcome.steps)] = why
    return outcome


def steps_of(family: str, folder: Path, note: Callable[[Outcome], object]) -> None:
    """One step of training with its evaluation and checkpoint, `eval.py`'s way with that checkpoint, the prediction of
    one image, and the export to a program that is loaded and compared. `note` is called after each."""
    started = time.monotonic()
    kwargs = REDUCED.get(family, {})
    outcome = Outcome(family, smallest(family))
    outcome.size = small_size(outcome.model, kwargs)
    note(outcome)
    images, run = make_images(folder / "images", outcome.size), folder / "run"
    best = run / "best.pt"
    settings = (
        f"model.name={outcome.model}", f"data.root={images}", f"data.input.size={outcome.size}", "data.workers=0",
        "data.cache=none", f"run.dir={run}", "run.device=cpu", "run.tensorboard=false", "optim.lr=1e-4",
        "train.epochs=1", "train.batch_size=2", "train.device_batch_size=2", f"model.kwargs={kwargs}",
    )  # fmt: skip
    config = folder / "run.yaml"
    config.write_text("{}\n")

    def trained() -> None:
        train(load_config(config, list(settings)))
        assert best.exists(), "no best.pt was written"

    def evaluated() -> None:
        report = evaluate_checkpoint(best, data=images, device="cpu", workers=0, output=folder / "report")
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        before = next(record["loss"] for record in reversed(records) if "top1" in record)
        loss = report.metrics["loss"]  # type: ignore[union-attr]
        assert abs(loss - before) < 1e-3, f"loss {loss}, in training {before}"

    def predicted() -> None:
        probabilities = predict(load_classifier(best), images / "val" / "a" / "0.png")
        assert abs(probabilities.sum().item() - 1) < 1e-4, f"probabilities {probabilities.tolist()}"

    def exported() -> None:
        for comparison in export(ExportOptions(str(best), "torch", folder / "network.pt2")):
            assert comparison.agrees, f"error {comparison.error:.1g} of the largest logit"

    for step, action in zip(STEPS, (trained, evaluated, predicted, exported), strict=True):
        outcome.steps[step] = reason(action)
        outcome.seconds = round(time.monotonic() - started, 1)
        note(outcome)
        if step == "train" and outcome.steps[step] != "yes":
            return


def reason(action: Callable[[], None]) -> str:
    """`yes`, or one sentence: of a refusal, or of what failed."""
    try:
        action()
    except UserError as error:
        return f"refused: {_line(error)}"
    except Exception as error:
        logging.getLogger("ddfnet").exception("failed")
        return f"FAILS with {type(error).__name__}: {_line(error)}"
    return "yes"


def small_size(name: str, kwargs: dict[str, int]) -> int:
    """The first of `SIDES` and the size of its own at which a model with these arguments trains; its own where it
    trains at none."""
    cfg = get_pretrained_cfg(name)
    own = cfg.input_size[-1] if cfg else 224
    for side in (*SIDES, own):
        try:
            network = create_model(name, num_classes=len(CLASSES), **kwargs, **size_argument(name, {}, side))
            if isinstance(_logits(network, side), Tensor):
                return side
        except Exception:  # whatever a model says of sizes it does not take
            continue
    return own


@torch.no_grad()
def _logits(network: nn.Module, side: int) -> Tensor:
    return network.train()(torch.zeros(2, 3, side, side))


def make_images(folder: Path, size: int) -> Path:
    """Two classes with one image for training and one for validation, PNG of size x size."""
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in CLASSES:
            (folder / split / label).mkdir(parents=True)
            pixels = draws.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / label / "0.png")
    return folder


def _line(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())[:300]
