"""`gptjax lm-eval`: lm-evaluation-harness, to which models of gptjax are known."""

from __future__ import annotations

import importlib.util

from gptjax.core import backend
from gptjax.core.config import require


def harness_command(args: list[str]) -> None:
    """Runs the harness' own command, `lm-eval`, whose `--model` is gptjax unless another is named:
    `gptjax lm-eval --model_args path=MODEL --include_path FOLDER --tasks NAME`."""
    require(
        importlib.util.find_spec("lm_eval") is not None,
        "lm-evaluation-harness is not installed: pip install 'gptjax[eval]'; `gptjax evaluate"
        " --tasks` needs none of it.",
    )
    backend.configure()
    from gptjax.evaluate.harness import run

    run(args)
