"""A loss of your own: unlikelihood, which keeps a model from saying the same again and again.

    python examples/custom_loss.py              (half a minute of one core)

Small models that write their likeliest token get stuck in loops. Cross-entropy raises what comes
next; unlikelihood also lowers tokens of the last few that do not come next. A loss is a frozen
dataclass of its settings, whose `build` returns a function of (parameters, frozen, batch, key). It
trains, evaluates and resumes like those of the package. Of the pieces of eight letters in greedy
texts, 47 % had been there before after cross-entropy, 6 % after unlikelihood; a size of 1/64 is no
help. Neither text is good after 300 steps. What to type next:

    gptjax sample runs/examples/unlikelihood --prompt "class " --temperature 0
    open gptjax/losses/pairwise.py              (losses of pairs, in the same form)

Source: Welleck et al. 2020, arXiv:1908.04319, the token-level loss.
"""

from __future__ import annotations

import email
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

import gptjax
from gptjax import model
from gptjax.data import Batch, Bytes, DataConfig, Text
from gptjax.losses import CrossEntropy, FunctionLoss, LossConfig, predict, token_losses
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule


@dataclass(frozen=True)
class Unlikelihood(LossConfig):
    """Cross-entropy − size · ln(1 − p) of each of the last tokens that is not the next one."""

    size: float = 1.0
    """0 is cross-entropy."""
    last: int = 32
    """Number of earlier tokens that are made less likely."""

    def build(self, config: model.ModelConfig) -> FunctionLoss:
        """Returns the loss of a model: a sum, the weight of it, and metrics to log."""

        def loss(params, frozen, batch: Batch, key):
            logits, _ = predict(config, params, batch, key)  # [B T V]
            nats = token_losses(logits, batch.targets)
            chances = jax.nn.softmax(logits)
            again = jnp.zeros(nats.shape)
            for back in range(self.last):
                earlier = jnp.roll(batch.tokens, back, axis=1)  # [B T]; row beginnings are left out
                chance = jnp.take_along_axis(chances, earlier[..., None], axis=-1)[..., 0]
                counts = (earlier != batch.targets) & (jnp.arange(nats.shape[1])[None] >= back)
                again -= counts * jnp.log1p(-jnp.minimum(chance, 0.999))
            total = ((nats + self.size * again) * batch.weights).sum()
            return total, batch.weights.sum(), {}

        return FunctionLoss(loss)


def repeated(text: str, length: int = 8) -> float:
    """Share of the pieces of eight characters that were there before."""
    pieces = [text[i : i + length] for i in range(len(text) - length)]
    return 1 - len(set(pieces)) / max(1, len(pieces))


def main(folder: Path, steps: int = 300) -> None:
    """Trains the same model with both losses, and lets both write greedily."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(email.__file__).parent.glob("*.py"))
    (folder / "email.txt").write_text("".join(file.read_text("utf-8") for file in files), "utf-8")
    source = Text(str(folder / "email.txt"))
    for name, loss in (("likelihood", CrossEntropy()), ("unlikelihood", Unlikelihood())):
        experiment = Experiment(
            data=DataConfig(source=source, tokenizer=Bytes(), validation=0.05, split="tail"),
            model=model.small("tiny", width=96, num_heads=4, context=64),
            loss=loss,
            optim=AdamW(peak=5e-3),
            schedule=Schedule("linear", warmup=20, floor=0.0),
            evaluation=Evaluation(every=1000),
            steps=steps,
            batch=16,
        )
        train(experiment, folder / name)
    prompts = ["def ", "class ", "import ", "    return ", "# "]
    for name in ("likelihood", "unlikelihood"):
        opened = gptjax.load(folder / name, known=(Unlikelihood,))
        said = [one.text for one in opened.complete(prompts, temperature=0, new_tokens=200)]
        print(f"{name:13} {sum(map(repeated, said)) / len(said):.0%} repeated; {said[0][:60]!r}")


if __name__ == "__main__":
    main(Path("runs/examples"))
