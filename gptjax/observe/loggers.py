"""Loggers of others as hooks: Weights & Biases, MLflow and trackio. Each is imported when it is
named, and none is needed.

Read `LOGGERS`, then one of the classes. A resumed run goes on in the same record: its id is kept in
the run directory.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptjax.core.config import ConfigError
from gptjax.observe.hook import Hook


class WandB(Hook):
    """Weights & Biases; `WANDB_MODE=offline` keeps all in the run directory. Source: wandb 0.31."""

    name = "wandb (--loggers)"

    def __init__(self, project: str):
        with _needs("wandb"):
            import wandb
        self._wandb, self._project, self._run = wandb, project, None

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> None:
        """Begins the record, or goes on in it."""
        self._run = self._wandb.init(
            project=self._project,
            name=path.name,
            id=_id(path, "wandb"),
            resume="allow",
            dir=str(path),
            config=dict(config),
        )

    def finished(self, step: int, values: Mapping[str, float]) -> None:
        """Logs what is finite."""
        if self._run is not None:
            self._run.log(_finite(values), step=step)

    def close(self) -> None:
        """Ends the record."""
        if self._run is not None:
            self._run.finish()


class MLflow(Hook):
    """MLflow, which writes where `MLFLOW_TRACKING_URI` says, or where it does by itself. Source:
    mlflow 3.17."""

    name = "mlflow (--loggers)"

    def __init__(self, project: str):
        with _needs("mlflow"):
            from mlflow.tracking import MlflowClient
        self._make, self._project, self._client, self._id = MlflowClient, project, None, ""

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> None:
        """Begins the record, or goes on in it."""
        self._client = self._make()
        known = path / "mlflow.id"
        if known.is_file():
            self._id = known.read_text().strip()
            return
        found = self._client.get_experiment_by_name(self._project)
        at = found.experiment_id if found else self._client.create_experiment(self._project)
        self._id = self._client.create_run(at, run_name=path.name).info.run_id
        for name, value in _flat(config).items():
            self._client.log_param(self._id, name, str(value)[:500])
        known.write_text(self._id)

    def finished(self, step: int, values: Mapping[str, float]) -> None:
        """Logs what is finite."""
        if self._client is not None:
            for name, value in _finite(values).items():
                self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        """Ends the record."""
        if self._client is not None:
            self._client.set_terminated(self._id)


class Trackio(Hook):
    """trackio, which keeps all in `TRACKIO_DIR`, a folder of the user's cache if it is not set.
    Source: trackio 0.43."""

    name = "trackio (--loggers)"

    def __init__(self, project: str):
        with _needs("trackio"):
            import trackio
        self._trackio, self._project, self._run = trackio, project, None

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> None:
        """Begins the record, or goes on in it."""
        name = f"{path.name}-{_id(path, 'trackio')}"
        self._run = self._trackio.init(
            project=self._project, name=name, resume="allow", config=_flat(config)
        )

    def finished(self, step: int, values: Mapping[str, float]) -> None:
        """Logs what is finite."""
        if self._run is not None:
            self._run.log(_finite(values), step=step)

    def close(self) -> None:
        """Ends the record."""
        if self._run is not None:
            self._run.finish()


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
    """The id of a run's record, made once and kept in the run directory."""
    kept = path / f"{name}.id"
    if not kept.is_file():
        kept.write_text(secrets.token_hex(4))
    return kept.read_text().strip()


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if math.isfinite(float(v))}


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The settings by their dotted names, as flags have them."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{before}{name}."))
        else:
            plain = isinstance(value, str | int | float | bool) or value is None
            flat[before + name] = value if plain else json.dumps(value)
    return flat
