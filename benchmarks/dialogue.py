"""Dialogue: loss of held-out answers, and F1 of written ones beside the nearest answer by BM25.

    python benchmarks/dialogue.py smollm2 --file ../shared/data/chat/instructions.jsonl
    python benchmarks/dialogue.py smollm2 runs/sft_smollm2 --file data/chats.jsonl

Of a file of {prompt, response} or of {"messages": …} in each line, a tenth is held out by a hash of
its question. `nearest` answers with the answer of the question that BM25 ranks first among all
others; `its question` repeats the question. Words are compared as SQuAD does. Needs `pip install
-e '.[retrieval]'`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import gptjax
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import Message
from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.figures.text import token_f1
from gptjax.evaluate.figures.totals import ratio_of
from gptjax.evaluate.requests import Score
from gptjax.evaluate.respond import respond
from gptjax.retrieve import build_index, search_passages


def turns(path: Path) -> list[tuple[str, str]]:
    """The first question and answer of each conversation."""
    made = []
    for line in path.read_text(encoding="utf-8").strip().split("\n"):
        record = json.loads(line)
        if "messages" in record:
            asked, said = (one["content"] for one in record["messages"][:2])
        else:
            asked = record["prompt"].split("### Instruction:\n")[-1].split("\n\n### Response")[0]
            said = record["response"]
        made.append((asked.strip(), said.strip()))
    return list(dict.fromkeys(made))


def held_out(question: str) -> bool:
    return hashlib.sha256(question.encode()).digest()[0] % 10 == 0


def report(name: str, answers: list[str], wanted: list[str]) -> None:
    figure = mean_of([token_f1(a, [w]) for a, w in zip(answers, wanted, strict=True)])
    print(f"{name:24} F1 {figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="smollm2, a run; none: baselines alone")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40, help="held-out questions at most")
    parser.add_argument("--longest", type=int, default=400, help="characters of a question")
    parser.add_argument("--new-tokens", type=int, default=100)
    args = parser.parse_args()
    pairs = turns(args.file)
    known = [pair for pair in pairs if not held_out(pair[0])]
    asked = [p for p in pairs if held_out(p[0]) and len(p[0]) <= args.longest][: args.count]
    questions, wanted = [q for q, _ in asked], [a for _, a in asked]
    print(f"{len(asked)} held-out questions, {len(known)} others")
    index = build_index([question for question, _ in known])
    found = [search_passages(index, question, 1) for question in questions]
    report("nearest", [known[one[0].number][1] if one else "" for one in found], wanted)
    report("its question", questions, wanted)
    for name in args.models:
        model = gptjax.load(name)
        form = chat.choose_template(None, model.tokenizer)
        prompts = [chat.render(form, [Message("user", q)], model.tokenizer) for q in questions]
        scored = respond(model, [Score(p, a) for p, a in zip(prompts, wanted, strict=True)])
        loss = ratio_of([-one.logprob for one in scored], [one.tokens for one in scored])
        print(
            f"{name:24} {loss.value:.3f} nats an answer token ({loss.low:.3f} to {loss.high:.3f})"
        )
        stop = chat.ends(form, model.tokenizer)
        written = model.complete(
            prompts,
            temperature=0.0,
            new_tokens=args.new_tokens,
            stop=stop.texts,
            stop_ids=stop.ids,
            batch=8,
        )
        report(name, [one.text.strip() for one in written], wanted)


if __name__ == "__main__":
    main()
