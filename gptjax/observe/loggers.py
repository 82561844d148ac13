"""Loggers of others as hooks: Weights & Biases, MLflow and trackio. Each is imported when it is
named, and none is needed.

Read `LOGGERS`, then one of the classes. A resumed run continues the same logged run, whose id is
kept in the run directory.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError, flat_settings
from gptjax.observe.hook import Hook


class _Record(Hook):
    """What `start` of a logger opens as `_run`, with the methods `log` and `finish`."""

    _run: Any = None

    def finished(self, step: int, values: Mapping[str, float]) -> None:
        """Logs what is finite."""
        if self._run is not None:
            self._run.log(_finite(values), step=step)

    def close(self) -> None:
        """Ends the logged run."""
        if self._run is not None:
            self._run.finish()


class WandB(_Record):
    """Weights & Biases; `WANDB_MODE=offline` keeps all in the run directory. Source: wandb 0.31."""

    name = "wandb (--loggers)"

    def __init__(self, project: str):
        with _needs("wandb"):
            import wandb
        self._wandb, self._project = wandb, project

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> None:
        """Begins the logged run, or continues it."""
        self._run = self._wandb.init(
            project=self._project,
            name=path.name,
            id=_id(path, "wandb"),
            resume="allow",
            dir=str(path),
            config=dict(config),
        )


class MLflow(_Record):
    """MLflow, which writes where `MLFLOW_TRACKING_URI` says, or where it does by itself. Source:
    mlflow 3.17."""

    name = "mlflow (--loggers)"

    def __init__(self, project: str):
        with _needs("mlflow"):
            from mlflow.tracking import MlflowClient
        self._make, self._project = MlflowClient, project

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> None:
        """Begins the logged run, or continues it."""
        client, known = self._make(), path / "mlflow.id"
        if known.is_file():
            self._run = _MLflowRun(client, known.read_text().strip())
            return
        found = client.get_experiment_by_name(self._project)
        at = found.experiment_id if found else client.create_experiment(self._project)
        self._run = _MLflowRun(client, client.create_run(at, run_name=path.name).info.run_id)
        for name, value in _plain_settings(config).items():
            client.log_param(self._run.id, name, str(value)[:500])
        known.write_text(self._run.id)


class _MLflowRun(NamedTuple):
    client: Any
    id: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=step)

    def finish(self) -> None:
        self.client.set_terminated(self.id)


class Trackio(_Record):
    """trackio, which keeps all in `TRACKIO_DIR`, a folder of the user's cache if it is not set.
    Source: trackio 0.43."""

    name = "trackio (--loggers)"

    def __init__(self, project: str):
        with _needs("trackio"):
            import trackio
        self._trackio, self._project = trackio, project

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> None:
        """Begins the logged run, or continues it."""
        name = f"{path.name}-{_id(path, 'trackio')}"
        self._run = self._trackio.init(
            project=self._project, name=name, resume="allow", config=_plain_settings(config)
        )


LOGGERS = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}
"""What `--loggers` may name."""


def loggers(names: tuple[str, ...], project: str) -> tuple[Hook, ...]:
    """Returns the hooks of the loggers named.

    Raises:
      ConfigError: one is not known, or not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(f"--loggers names {name!r}; use some of {', '.join(LOGGERS)}.")
    return tuple(LOGGERS[name](project) for name in dict.fromkeys(names))


@contextlib.contextmanager
def _needs(name: str) -> Iterator[None]:
    """Says what to install where the import inside fails."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"--loggers names {name}, which can't be imported ({error}); pip install {name}, or"
            " leave it out."
        ) from None


def _id(path: Path, name: str) -> str:
    """The id of the logged run, made once and kept in the run directory."""
    kept = path / f"{name}.id"
    if not kept.is_file():
        kept.write_text(secrets.token_hex(4))
    return kept.read_text().strip()


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if math.isfinite(float(v))}


def _plain_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by their dotted names, as flags have them; lists as JSON."""
    return {
        name: json.dumps(value) if isinstance(value, list | dict) else value
        for name, value in flat_settings(config)
    }
