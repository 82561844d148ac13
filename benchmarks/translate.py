"""BLEU and chrF of translation runs over their held-out pairs, against copying and retrieval.

    python benchmarks/translate.py RUN ...

Each held-out English text is translated once, greedily or with `--beams`; all of its translations
in the data are references. Copying answers with the English text itself; retrieval answers with the
translation of the training text that is nearest, by tf-idf of words and word pairs (cosine, case
ignored) or by BM25. Intervals are of texts, 95 %. Needs `pip install -e '.[benchmark,retrieval]'`.

Source: Papineni et al. 2002; Post 2018, arXiv:1804.08771, whose sacrebleu counts, with its
tokenizer for Chinese.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer

import gptjax
from gptjax import data
from gptjax.core import config
from gptjax.core.config import require
from gptjax.data.store import Store
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.evaluate.figures.written import corpus_figures
from gptjax.retrieve import build_index, search_passages
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


def nearest(known: dict[str, list[str]], asked: list[str]) -> list[str]:
    """The translation of the first known text by BM25, for each."""
    texts = list(known)
    index = build_index(texts)
    found = (search_passages(index, text, 1) for text in asked)
    return [known[best[0].text][0] if best else "" for best in found]


def said(name: str, answers: list[str], references: list[list[str]], language: str) -> float:
    """Prints BLEU and chrF of all answers with their intervals; returns BLEU."""
    figures = corpus_figures(answers, references, language)
    print(
        f"{name}: "
        + ", ".join(
            f"{metric} {one.value:.2f} ({one.low:.2f} to {one.high:.2f})"
            for metric, one in figures.items()
        ),
        flush=True,
    )
    return figures["bleu"].value


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
            print(
                f"{len(asked)} texts held out, {sum(map(len, references))} translations;"
                f" {len(known)} texts to learn from"
            )
            said("copy", asked, references, args.tokenize)
            said("nearest by tf-idf", retrieved(known, asked), references, args.tokenize)
            said("nearest by BM25", nearest(known, asked), references, args.tokenize)
        found = gptjax.load(path).complete(
            asked, temperature=0.0, beams=args.beams, new_tokens=experiment.model.context, batch=64
        )
        answers = [one.text for one in found]
        scores.append(said(str(path), answers, references, args.tokenize))
        for text, answer, wanted in list(zip(asked, answers, references, strict=True))[: args.show]:
            print(f"  {text} → {answer} ({' / '.join(wanted)})")
    print(f"mean of {len(scores)}: BLEU {sum(scores) / len(scores):.2f}")


if __name__ == "__main__":
    main()
