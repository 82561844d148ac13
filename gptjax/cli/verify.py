"""`gptjax verify`: proofs that a config computes what it says, on this machine."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from gptjax.cli.arguments import read_with_flags
from gptjax.core import backend, user_config


@dataclass(frozen=True)
class VerifyOptions:
    """Flags of `verify` besides those of the experiment."""

    only: tuple[str, ...] = ()
    """Names of the proofs to run; the default is all."""
    report: str | None = None
    """File of the JSON report; a text file of the same name is written beside it. The default is
    verify.json in the run directory, or here."""
    json: bool = False
    """Print the report as one JSON object; progress goes to standard error."""


def verify_command(args: list[str]) -> None:
    """Runs the proofs over a config or a run; exits with status 1 if one fails."""
    backend.configure()
    from gptjax import verify

    path = Path(args[0]) if args and not args[0].startswith("-") else None
    experiment, directory, flags = read_with_flags(path, args[1:] if path else args)
    options, experiment = user_config.cli(
        VerifyOptions,
        flags,
        prog="gptjax verify [CONFIG|RUN]",
        description="Proves that a config computes what it says, on this machine. Without CONFIG it"
        " takes the default of every setting: a model of a million parameters over the source of"
        " Python's own library. Exit status: 0 if all proofs pass, 1 if one fails. Proofs:"
        f" {', '.join(proof.name for proof in verify.PROOFS)}.",
        base=experiment,
    )
    run = directory if path is not None and path.suffix != ".py" else None
    if run is not None and not (run / "identity.json").is_file():
        run = None
    say = functools.partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    report = verify.run_proofs(experiment, run=run, only=options.only, say=say)
    file = Path(options.report) if options.report else (run or Path()) / "verify.json"
    verify.write_report(file, report)
    say(f"\n{verify.verdict(report, file)}")
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    if not report["passed"]:
        raise SystemExit(1)
