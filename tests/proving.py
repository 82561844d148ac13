"""What a proof says of a setting, for tests of proofs."""

from __future__ import annotations

from gptjax import verify
from gptjax.verify.setting import Setting


def outcome(table: tuple, name: str, setting: Setting) -> str:
    """Status and words of the proof of that name in a table."""
    (proof,) = verify.choose_proofs([name], table)
    result = verify.prove(proof, setting)
    return f"{result['status']} {result['words']}"
