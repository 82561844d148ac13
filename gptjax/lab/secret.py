"""The secret of a private run: 32 random bytes from which it draws rows and noise.

Whoever has it can subtract the noise, and tell which rows were in which step. So it lies outside
the run directory, in a file that only its owner can read. All draws are functions of (secret, the
run's salt, step), so a resumed run repeats them bit for bit, which costs no privacy, and another
run with the same secret repeats none: the difference of two models with one noise would be bare.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import numpy as np

from gptjax.core.config import ConfigError, require

SIZE = 32


def secret_path(run: Path) -> Path:
    """Returns where the secret of a run lies unless something else is said: in `gptjax/secrets` of
    the user's XDG state folder."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:32]
    return state / "gptjax" / "secrets" / f"{name}.key"


def require_outside(file: Path, run: Path) -> None:
    """Refuses a secret inside the run directory, which is what gets published.

    Raises:
      ConfigError: names another place.
    """
    require(
        not file.resolve().is_relative_to(run.resolve()),
        f"{file} lies in the run directory, which may be given away with it; keep the secret"
        f" elsewhere (--key {secret_path(run)}).",
    )


def make_secret(file: Path) -> bytes:
    """Makes a new secret in a file that only its owner can read; returns it.

    Raises:
      ConfigError: the file is there already or can't be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the secret can't be written to {file} ({error.strerror}); name another file (--key)."
        ) from None
    made = secrets.token_bytes(SIZE)
    with os.fdopen(number, "wb") as opened:
        opened.write(made)
    return made


def read_secret(file: Path) -> bytes:
    """Reads a secret.

    Raises:
      ConfigError: the file is absent or holds something else.
    """
    require(
        file.is_file(),
        f"{file} is not there, and without its secret a private run can't be resumed; restore it,"
        " name another file (--key), or begin a new run (--dir).",
    )
    found = file.read_bytes()
    require(
        len(found) == SIZE,
        f"{file} holds {len(found)} bytes and a secret has {SIZE}; name another file (--key).",
    )
    return found


def secret_fingerprint(secret: bytes) -> str:
    """Returns what identifies a secret and gives nothing of it away."""
    return hashlib.sha256(b"gptjax private run" + secret).hexdigest()


def new_salt() -> str:
    """Returns a random salt for a run that begins."""
    return secrets.token_hex(16)


def salted(secret: bytes, salt: str) -> bytes:
    """Returns the secret of one run, from a secret that several may have and the run's own salt,
    which is public."""
    return hashlib.sha256(b"gptjax salted" + secret + salt.encode()).digest()


def _stream(secret: bytes, purpose: bytes, step: int, size: int) -> bytes:
    """The first bytes of SHAKE-256 over the secret, what they are for, and the step."""
    return hashlib.shake_256(secret + purpose + step.to_bytes(8, "big")).digest(size)


def poisson_rows(secret: bytes, step: int, rate: float, count: int) -> np.ndarray:
    """Returns the rows of a step: each of `count` is in it with probability `rate`, independently
    of all others; int64, rising."""
    words = np.frombuffer(_stream(secret, b"rows", step, 8 * count), np.uint64)
    return np.flatnonzero((words >> np.uint64(11)) < np.uint64(round(rate * 2**53)))


def noise_words(secret: bytes, step: int) -> np.ndarray:
    """Returns the two words of the step's noise key; uint32 [2]."""
    return np.frombuffer(_stream(secret, b"noise", step, 8), np.uint32)
