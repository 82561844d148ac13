"""Proofs that a config computes what it says, on this machine. Read `suite`, then `setting`, then
the proofs themselves."""

from gptjax.verify.setting import Figure, Setting, Skipped
from gptjax.verify.suite import (
    PROOFS,
    Proof,
    choose_proofs,
    prove,
    run_proofs,
    verdict,
    write_report,
)

__all__ = [
    "PROOFS",
    "Figure",
    "Proof",
    "Setting",
    "Skipped",
    "choose_proofs",
    "prove",
    "run_proofs",
    "verdict",
    "write_report",
]
