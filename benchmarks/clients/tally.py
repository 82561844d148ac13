"""Counts what holds and what does not, and says so in one line. Only the standard library, because
every client has an environment of its own.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from importlib import metadata


class Tally:
    """Checks of one client."""

    def __init__(self, client: str, version: str | None = None) -> None:
        self.client, self.version = client, version or metadata.version(client)
        self.checks, self.errors = 0, 0

    def check(self, holds: object, told: object = "") -> None:
        """Counts one check; writes `told` on standard error if it does not hold."""
        self.checks += 1
        if not holds:
            self.errors += 1
            print(f"  wrong: {told}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def calling(self, told: object) -> Iterator[None]:
        """Counts one call, which is an error if anything is raised in it."""
        self.checks += 1
        try:
            yield
        except Exception as error:
            self.errors += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
            line = " ".join(str(error).split())[:400]
            print(f"  failed: {told}: {type(error).__name__} at {where}: {line}", file=sys.stderr)

    def end(self) -> None:
        """Prints the line and ends the process, with status 1 if there was an error."""
        print(f"{self.client} {self.version}: {self.checks} checks, {self.errors} errors")
        sys.exit(1 if self.errors else 0)


def address() -> tuple[str, str]:
    """The server's address and its model's name, from the command line: URL MODEL."""
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} URL MODEL; benchmarks/clients/run.py gives both")
    return sys.argv[1], sys.argv[2]
