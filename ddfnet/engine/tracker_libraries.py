"""The libraries of `run.trackers`, each behind the protocol `Tracker` and imported when it is asked for.

Where their records go, under which project, and whether the network is used, is each library's own matter: they read
WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, TRACKIO_DIR and so on.
"""

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

PROJECT = "ddfnet"
_MLFLOW_PARAMETERS = 100  # of one request
_MLFLOW_CHARACTERS = 500  # of a parameter


@dataclass(frozen=True)
class RunFacts:
    """What a tracker is told of a run at its start."""

    folder: Path
    config: dict[str, Any]  # key.sub -> value
    config_yaml: str
    metrics: tuple[str, ...]  # scalars that rank the run: "val/top1"

    @property
    def name(self) -> str:
        return self.folder.resolve().name


class TensorBoard:
    """Event files in the run folder; continued by purging what the run is going to repeat."""

    id, purges = None, True

    def __init__(self, facts: RunFacts, step: int, known: str | None) -> None:
        from torch.utils.tensorboard.summary import hparams

        self._folder = str(facts.folder / "tensorboard")
        self._open(step)
        fenced = "\n".join("    " + line for line in facts.config_yaml.splitlines())
        self._writer.add_text("config", fenced, step)
        # `add_hparams` would write them as a run of their own, beside this one.
        parameters = {key: value if isinstance(value, bool | int | float | str) else str(value)
                      for key, value in facts.config.items()}  # fmt: skip
        events: Any = self._writer.file_writer
        for summary in hparams(parameters, dict.fromkeys(facts.metrics, 0.0)):
            events.add_summary(summary, step)
        self._writer.flush()

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._folder, purge_step=step + 1)

    def rewind(self, step: int) -> None:
        self._writer.close()
        self._open(step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        self._writer.flush()

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._writer.add_histogram(name, values, step)

    def close(self, outcome: str) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases, with the axes `step` and `epoch`. The number of its own steps, which it lets only increase, is
    that of the run's, too, but for records of an evaluation that a new start makes up for."""

    purges = False

    def __init__(self, facts: RunFacts, step: int, known: str | None) -> None:
        import wandb

        self.id: str | None = known or secrets.token_hex(4)
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=facts.name,
            id=self.id,
            resume="allow",
            dir=str(facts.folder),
            config=facts.config,
            settings=wandb.Settings(console="off"),  # the console of the run is a progress bar
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._last = self._run.starting_step  # of its own: of a run that is continued, behind what its server has

    def _log(self, values: dict[str, Any], step: int) -> None:
        self._last = max(self._last, step)
        self._run.log({**values, "step": step}, step=self._last)

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._log(values, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._log({name: self._wandb.Image(pixels)}, step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._log({name: self._wandb.Histogram(values)}, step)

    def close(self, outcome: str) -> None:
        self._run.finish(exit_code=0 if outcome == "finished" else 1)


class Trackio:
    """Trackio, on this machine, or in the Space of TRACKIO_SPACE_ID."""

    purges = False

    def __init__(self, facts: RunFacts, step: int, known: str | None) -> None:
        import trackio

        self.id: str | None = known or f"{facts.name}-{secrets.token_hex(3)}"
        self._trackio = trackio
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.id,
            config=facts.config,
            resume="allow",
            embed=False,
        )

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({name: self._trackio.Image(pixels)}, step=step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """It has none that could be read back."""

    def close(self, outcome: str) -> None:
        self._run.finish()


class Mlflow:
    """MLflow: metrics, parameters, and the configuration and images as artifacts."""

    purges = False
    _STATUS: ClassVar = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}

    def __init__(self, facts: RunFacts, step: int, known: str | None) -> None:
        # A server that is gone should cost a run seconds, not the minutes of the library's defaults.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        if known is not None:
            self.id: str | None = known
            self._client.update_run(known, status="RUNNING")
        else:
            project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(project)
            self.id = self._client.create_run(number, run_name=facts.name).info.run_id
            parameters = [Param(key, str(value)[:_MLFLOW_CHARACTERS]) for key, value in facts.config.items()]
            for first in range(0, len(parameters), _MLFLOW_PARAMETERS):
                self._client.log_batch(self.id, params=parameters[first : first + _MLFLOW_PARAMETERS])
        self._client.log_text(self.id, facts.config_yaml, "config.yaml")

    def scalars(self, values: dict[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        metrics = [self._metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._client.log_image(self.id, pixels, artifact_file=f"{name}/step{step:08}.png")

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """It has none."""

    def close(self, outcome: str) -> None:
        self._client.set_terminated(self.id, self._STATUS[outcome])


LIBRARIES: dict[str, Callable[[RunFacts, int, str | None], Any]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}
