"""Writes the losses of ten steps of TRL's trainers: `python benchmarks/trl_trajectories.py OUT`.

SFT, DPO, KTO, ORPO, CPO and reward models train a two-layer Llama from the same weights on texts,
whose characters are the ids, by Adam at a constant rate, in float32. Ten steps of four records each
are taken in the order of the records. tests/test_trajectories.py takes the same steps with gptjax.

Needs: pip install trl==1.16.0 torch==2.13.0 (Python 3.11).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

STEPS, ROWS, RATE, EPSILON = 10, 4, 1e-3, 1e-6
END, VOCABULARY = 256, 257
"""The id before and after each text, and the number of ids; those below `END` are characters."""
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": True,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": 0,
}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights in the order of their names: scales of norms around 1, all else around 0."""
    draw = np.random.default_rng(0)
    return {
        name: (draw.standard_normal(shape) * 0.2 + (len(shape) == 1)).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }


def records() -> list[dict[str, Any]]:
    """Sums with a right and a wrong answer of other lengths."""
    draw = np.random.default_rng(1)
    made = []
    for _ in range(STEPS * ROWS):
        a, b = draw.integers(10, 90, 2)
        wrong = "?!" * draw.integers(1, 3) + str(draw.integers(10, 99))
        made.append({"prompt": f"{a} + {b} = ", "chosen": str(a + b), "rejected": wrong})
    return made


def judged() -> list[dict[str, Any]]:
    """The same as single answers, good or bad in turn."""
    kinds = [("chosen", True), ("rejected", False)] * (STEPS * ROWS)
    return [
        {"prompt": r["prompt"], "completion": r[kind], "label": good}
        for r, (kind, good) in zip(records(), kinds, strict=False)
    ]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Characters as ids, and `END` before each text."""
    made = Tokenizer(models.WordLevel({chr(i): i for i in range(END)} | {"<end>": END}, chr(0)))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made.add_special_tokens(["<end>"])
    made.post_processor = processors.TemplateProcessing("<end> $A", special_tokens=[("<end>", END)])
    names = {"bos_token": "<end>", "eos_token": "<end>", "pad_token": chr(0)}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def model(scored: bool) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A Llama with drawn weights, and their shapes by name.

    Args:
      scored: with an output of one number.
    """
    config = transformers.LlamaConfig(**SHAPE, attn_implementation="eager")
    config.num_labels = 1
    kind = "SequenceClassification" if scored else "CausalLM"
    made = getattr(transformers, f"LlamaFor{kind}")(config)
    state = made.state_dict()
    shapes = {n: tuple(x.shape) for n, x in state.items() if n != "lm_head.weight"}
    made.load_state_dict({n: torch.tensor(x) for n, x in drawn(shapes).items()}, strict=False)
    return made, shapes


def trajectory(kind: type, config: type, data: list[dict[str, Any]], **settings: Any) -> list:
    """Losses of all steps of a trainer."""
    losses: list[float] = []

    class Recorded(kind):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    with tempfile.TemporaryDirectory() as folder:
        args = config(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            max_steps=STEPS,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            adam_epsilon=EPSILON,
            weight_decay=0.0,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            max_length=64,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            activation_checkpointing=False,
            disable_tqdm=True,
            **settings,
        )
        compares = kind in (trl.DPOTrainer, trl.KTOTrainer)
        trainer = Recorded(
            model=model(scored=kind is trl.RewardTrainer)[0],
            args=args,
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer(),
            **({"ref_model": model(scored=False)[0]} if compares else {}),
        )
        if kind is trl.KTOTrainer:  # the answers that gptjax takes, half the data away
            answers = trainer.train_dataset["completion_ids"]
            far = [answers[(i + len(data) // 2) % len(data)] for i in range(len(data))]
            less = trainer.train_dataset.remove_columns("KL_completion_ids")
            trainer.train_dataset = less.add_column("KL_completion_ids", far)
        trainer.train()
    assert len(losses) == STEPS, losses
    return losses


def trajectories() -> Iterator[tuple[str, list[float]]]:
    """Yields the losses of each kind of training."""
    pairs = records()
    answers = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in pairs]
    plain = {"loss_type": "nll", "packing": False, "completion_only_loss": True}
    yield "sft", trajectory(trl.SFTTrainer, trl.SFTConfig, answers, **plain)
    yield "dpo", trajectory(trl.DPOTrainer, trl.DPOConfig, pairs, beta=0.1)
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.5}
    yield "kto", trajectory(trl.KTOTrainer, trl.KTOConfig, judged(), beta=0.5, **weights)
    yield "orpo", trajectory(ORPOTrainer, ORPOConfig, pairs, beta=0.5)
    yield "cpo", trajectory(CPOTrainer, CPOConfig, pairs, beta=0.1, cpo_alpha=1.0)
    yield "reward", trajectory(trl.RewardTrainer, trl.RewardConfig, pairs)


if __name__ == "__main__":
    shapes = {kind: model(kind == "reward")[1] for kind in ("sft", "reward")}
    golden = {
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "optimizer": {"rate": RATE, "epsilon": EPSILON},
        "shape": SHAPE,
        "shapes": shapes["reward"],
        "pairs": records(),
        "judged": judged(),
        "losses": dict(trajectories()),
    }
    Path(sys.argv[1]).write_text(json.dumps(golden) + "\n")
    print(json.dumps(golden["losses"], indent=1))
