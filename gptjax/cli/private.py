"""`gptjax private`: trains an experiment with differential privacy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gptjax.cli.arguments import describe_flags, first_path, read_with_flags
from gptjax.cli.process import STARTED
from gptjax.core import backend, remote, user_config

if TYPE_CHECKING:
    from gptjax.lab.promise import Privacy


@dataclass(frozen=True)
class PrivateOptions:
    """Flags of `private` besides those of the experiment. What is not given is as `privacy` in the
    config file has it, else its default."""

    dir: str | None = None
    """Run directory, as in gptjax train."""
    epsilon: float | None = None
    """How much the weights may tell about one row; 8 by default."""
    delta: float | None = None
    """Probability with which that may fail; 1e-5 by default."""
    clip: float | None = None
    """Largest norm of a row's gradient; 1 by default."""
    noise: float | None = None
    """Noise over clip, in place of epsilon; 0 is no privacy, with all else alike."""
    accountant: Literal["pld", "rdp"] | None = None
    """How epsilon is counted; pld, the tighter, by default."""
    at_once: int | None = None
    """Rows that are differentiated together; 1 by default, which is best on a CPU."""
    key: str | None = None
    """File of the secret, outside the run directory; a new run makes it. By default it is in the
    user's state folder."""


def private_command(args: list[str]) -> None:
    """Trains with differential privacy, or resumes such a run."""
    from gptjax.observe.watchdog import abrupt

    with abrupt():
        _private(args)


def _private(args: list[str]) -> None:
    chosen = backend.configure()
    path, flags = first_path(
        args, "gptjax private CONFIG [flags]", "a config file or a run's config.json"
    )

    experiment, directory, flags = read_with_flags(path, flags)
    options, experiment = user_config.cli(
        PrivateOptions,
        flags,
        prog="gptjax private CONFIG",
        description="Trains with differential privacy (DP-SGD), or resumes such a run. Weights are"
        " covered; logs and the optimizer state are not.",
        base=experiment,
    )
    from gptjax.lab.private import train_privately

    remote.require_local(options.dir or directory, "a private run")
    train_privately(
        experiment,
        privacy_of(path, options, directory),
        Path(options.dir) if options.dir else directory,
        key=Path(options.key) if options.key else None,
        notes=(describe_flags(chosen),),
        begun=STARTED,
    )


def privacy_of(path: Path | None, options: PrivateOptions, directory: Path) -> Privacy:
    """Returns the settings of privacy: flags, then the run's own or `privacy` of the config file,
    then the defaults."""
    from gptjax.lab.promise import Privacy, recorded_privacy

    if path is not None and path.suffix == ".py":
        found = user_config.load_python(Privacy, path, "privacy", absent=Privacy())
    else:
        found = recorded_privacy(directory) or Privacy()
    names = {field.name for field in dataclasses.fields(Privacy)}
    given = {k: v for k, v in vars(options).items() if k in names and v is not None}
    return dataclasses.replace(found, **given)
