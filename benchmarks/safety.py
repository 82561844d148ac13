"""How often models decline harmful prompts and harmless ones that only look harmful, before and
after safety tuning, with intervals; and what a moderation classifier makes of the same prompts.

    python examples/safety_sets.py harmful.jsonl helpful.jsonl examples/lookalikes.jsonl data/safety
    python benchmarks/safety.py --harmful data/safety/held_out_harmful.jsonl \
        --lookalikes examples/lookalikes.jsonl --models smollm2 runs/safety_sft_smollm2
    python benchmarks/safety.py --harmful data/safety/held_out_harmful.jsonl \
        --lookalikes data/safety/held_out_lookalikes.jsonl --moderator runs/moderation

Answers are written greedily; a refusal is what `gptjax probe MODEL refusals` takes for one. The
first model is the one that the others are compared with, prompt by prompt. `--out` keeps all
answers, to be read by a person; those that it has already are not written again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gptjax
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import Message
from gptjax.evaluate.figure import Figure, mean_of
from gptjax.evaluate.probes.finding import signed_mean
from gptjax.evaluate.probes.refusals import declines
from gptjax.evaluate.probes.sections import refusal_prompts
from gptjax.serve.moderation import Moderator


def shown(figure: Figure) -> str:
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def answers(model, prompts: list[str], new_tokens: int, batch: int) -> list[str]:
    form = chat.choose_template(None, model.tokenizer)
    closing = chat.ends(form, model.tokenizer)
    asked = [chat.render(form, [Message("user", text)], model.tokenizer) for text in prompts]
    done = model.complete(
        asked,
        new_tokens=new_tokens,
        temperature=0.0,
        batch=batch,
        stop=closing.texts,
        stop_ids=closing.ids,
    )
    return [one.text.strip() for one in done]


def compare(names: list[str], sets: dict[str, list[str]], options: argparse.Namespace) -> None:
    """Prints the share of prompts that each model declines, and the change against the first."""
    print("| model | prompts | n | declined, % | change, points |")
    print("|---|---|---|---|---|")
    before: dict[str, list[bool]] = {}
    known = {}
    if options.out and options.out.exists():
        lines = map(json.loads, options.out.read_text(encoding="utf-8").splitlines())
        known = {(one["model"], one["set"], one["prompt"]): one["answer"] for one in lines}
    for name in names:
        model = None
        for title, prompts in sets.items():
            missing = [text for text in prompts if (name, title, text) not in known]
            if missing:
                model = model or gptjax.load(name).prepared()
                made = answers(model, missing, options.new_tokens, options.batch)
                known |= {(name, title, p): a for p, a in zip(missing, made, strict=True)}
            written = [known[name, title, text] for text in prompts]
            refused = [declines(text) for text in written]
            first = before.setdefault(title, refused)
            change = signed_mean([int(b) - int(a) for a, b in zip(first, refused, strict=True)])
            moved = "" if name == names[0] else shown(change)
            share = shown(mean_of(refused))
            print(f"| {name} | {title} | {len(prompts)} | {share} | {moved} |", flush=True)
            if options.out:
                rows = (
                    {"model": m, "set": s, "prompt": p, "answer": a, "declined": declines(a)}
                    for (m, s, p), a in known.items()
                )
                text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
                options.out.write_text(text, encoding="utf-8")


def moderate(run: str, sets: dict[str, list[str]]) -> None:
    """Prints the share of prompts that a classifier stops, at several thresholds."""
    moderator = Moderator(gptjax.load(run))
    print("| prompts | n | threshold | stopped, % |")
    print("|---|---|---|---|")
    for title, prompts in sets.items():
        harm = [moderator.harm([text]) for text in prompts]
        for threshold in (0.3, 0.5, 0.7, 0.9):
            share = mean_of([value >= threshold for value in harm])
            print(f"| {title} | {len(prompts)} | {threshold} | {shown(share)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--harmful", type=Path, required=True)
    parser.add_argument("--lookalikes", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[], help="the one before tuning first")
    parser.add_argument("--moderator", help="a run that classifies")
    parser.add_argument("--limit", type=int, help="prompts of each kind, the first ones")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, help="keep the answers, as JSON lines")
    options = parser.parse_args()
    sets = {
        "harmful": refusal_prompts(options.harmful)[: options.limit],
        "look-alikes": refusal_prompts(options.lookalikes)[: options.limit],
    }
    if options.models:
        compare(options.models, sets, options)
    if options.moderator:
        moderate(options.moderator, sets)


if __name__ == "__main__":
    main()
