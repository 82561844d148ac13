"""A process that cleans a part of a job's shards: `python -m gptjax.clean.worker OUT FIRST STEP`.

It prints what it did as a line of JSON. Exit status 2 is for an error that the user can mend, which
standard error has in one line. It ends when the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from gptjax.clean.work import clean_shards, read_job
from gptjax.core import backend
from gptjax.core.config import ConfigError


def run_worker(arguments: Sequence[str]) -> int:
    """Cleans a part and returns the exit status."""
    out, first, step = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    try:
        print(json.dumps(clean_shards(read_job(out), out, first, step)._asdict()))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _end_with_parent() -> None:
    """Ends this process when the other end of its standard input is closed."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    backend.configure()
    sys.exit(run_worker(sys.argv[1:]))
