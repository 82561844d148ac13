"""The Python door: `gptjax.load(path)` gives a model with `.config, .params, .tokenizer, .generate(…)`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gptjax import config, generate, model
from gptjax.arrays import Params
from gptjax.checkpoint import Run
from gptjax.config import require
from gptjax.data import tokenizer as tokenizers
from gptjax.data.tokenizer import Tokenizer
from gptjax.generate import Completion, SampleConfig
from gptjax.model import ModelConfig


class Model(NamedTuple):
    """A trained model."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """Continues a prompt; `settings` are those of `SampleConfig` (`new_tokens`, `temperature`, `top_k`, `top_p`, `seed`)."""
        return self.complete([prompt], SampleConfig(**settings))[0].text

    def complete(self, prompts: Sequence[str], settings: SampleConfig | None = None) -> list[Completion]:
        """Continues every prompt, with ids, log-probabilities and the reason of the end."""
        return generate.complete(*self, prompts, settings or SampleConfig())

    def stream(self, prompt: str, settings: SampleConfig | None = None) -> Iterator[str | Completion]:
        """Continues a prompt piece by piece; the last item is the whole `Completion`."""
        return generate.stream_text(*self, prompt, settings or SampleConfig())


def load(path: Path | str, step: int | None = None) -> Model:
    """Opens a run directory for sampling; optimizer state is not read.

    Args:
      step: the checkpoint to use; none is the newest whole one. Averaged weights are used where the run kept them.

    Raises:
      ConfigError: the directory is not a run, or has no such checkpoint.
    """
    from gptjax.train.experiment import Experiment

    path = Path(path)
    require(path.is_dir(), f"{path} is not a directory; give a run directory, for example runs/quickstart (python train.py makes one).")
    require((path / "config.json").is_file(), f"{path} holds no config.json, so it is not a run; give a run directory.")
    experiment = config.load(Experiment, path / "config.json")
    known = experiment.model
    run = Run(path)
    steps = run.steps()
    require(bool(steps), f"{path} has no checkpoint yet; train it first: python train.py {path}/config.json")
    tree = "params" if experiment.optim.ema is None else "ema"
    shapes = jax.eval_shape(lambda: model.init(known, jax.random.key(0)))
    restored = run.restore({tree: shapes}, step=step)
    require(restored is not None, f"{path} has no checkpoint yet; train it first: python train.py {path}/config.json")
    return Model(known, restored[1][tree], _tokenizer(path))


def _tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a run, if it is still the one that the run was trained with."""
    found = tokenizers.load(path / "tokenizer")
    recorded = path / "identity.json"
    same = not recorded.is_file() or json.loads(recorded.read_text())["tokenizer"] == tokenizers.fingerprint(found)
    require(same, f"{path / 'tokenizer'} is not the tokenizer that this run was trained with ({recorded} has its hash); restore it from a copy.")
    return found
