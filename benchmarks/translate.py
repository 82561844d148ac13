"""BLEU of translation runs over their held-out pairs, against copying and retrieval.

    python benchmarks/translate.py RUN ...

Each held-out English text is translated once, greedily or with `--beams`; all of its translations
in the data are references. Copying answers with the English text itself; retrieval answers with the
translation of the training text that is nearest by tf-idf of words and word pairs (cosine, case
ignored). Needs `pip install -e '.[benchmark]'`.

Source: Papineni et al. 2002; Post 2018, arXiv:1804.08771, whose sacrebleu counts, with its
tokenizer for Chinese.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import sacrebleu
from sklearn.feature_extraction.text import TfidfVectorizer

import gptjax
from gptjax import data
from gptjax.core import config
from gptjax.core.config import require
from gptjax.data.store import Store
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.train.experiment import Experiment


def pairs(store: Store, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """Text → its translations, as a store of sequence to sequence holds them."""
    found = defaultdict(list)
    for first, last in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        ids = store.ids[first:last].tolist()
        border = ids.index(tokenizer.vocab_size)
        found[tokenizer.decode(ids[:border])].append(tokenizer.decode(ids[border + 1 :]))
    return dict(found)


def retrieved(known: dict[str, list[str]], asked: list[str]) -> list[str]:
    """The translation of the nearest known text, for each."""
    weigh, texts = (
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True),
        list(known),
    )
    near = (weigh.fit_transform(texts) @ weigh.transform(asked).T).toarray()
    return [known[texts[best]][0] for best in near.argmax(axis=0)]


def bleu(answers: list[str], references: list[list[str]], language: str) -> float:
    """BLEU over all answers."""
    most = max(map(len, references))
    streams = [[one[i] if i < len(one) else None for one in references] for i in range(most)]
    return sacrebleu.corpus_bleu(answers, streams, tokenize=language).score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", help="run directories of sequence to sequence"
    )
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument(
        "--tokenize", default="zh", help="sacrebleu's tokenizer of the language that is written"
    )
    parser.add_argument("--show", type=int, default=3, help="so many answers are printed")
    args, scores = parser.parse_args(), []
    for path in args.runs:
        experiment = config.load_config(Experiment, path / "config.json")
        require(
            "exact_match" in experiment.data.task.figures,
            f"{path} is no run of sequence to sequence (data.task).",
        )
        prepared = data.prepare(experiment.data, say=print)
        known, held_out = (
            pairs(store, prepared.tokenizer) for store in (prepared.train, prepared.validation)
        )
        require(not known.keys() & held_out.keys(), f"{path} trains on texts that are held out.")
        asked, references = list(held_out), list(held_out.values())
        if not scores:
            copied, looked_up = (
                bleu(answers, references, args.tokenize)
                for answers in (asked, retrieved(known, asked))
            )
            print(
                f"{len(asked)} texts held out, {sum(map(len, references))} translations;"
                f" {len(known)} texts to learn from"
            )
            print(f"copy: BLEU {copied:.2f}; retrieval: BLEU {looked_up:.2f}")
        found = gptjax.load(path).complete(
            asked, temperature=0.0, beams=args.beams, new_tokens=experiment.model.context, batch=64
        )
        answers = [one.text for one in found]
        scores.append(bleu(answers, references, args.tokenize))
        print(f"{path}: BLEU {scores[-1]:.2f}")
        for text, answer, wanted in list(zip(asked, answers, references, strict=True))[: args.show]:
            print(f"  {text} → {answer} ({' / '.join(wanted)})")
    print(f"mean of {len(scores)}: BLEU {sum(scores) / len(scores):.2f}")


if __name__ == "__main__":
    main()
