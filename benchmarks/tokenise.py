"""Tokenising documents against the library underneath, in turns in one process.

    python benchmarks/tokenise.py [FOLDER]

FOLDER holds the text (its .py or .txt files); the default is the standard library of this Python.
Prints characters per second of both.
"""

from __future__ import annotations

import os
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path

import paired
import sentencepiece

from gptjax.data import SentencePiece
from gptjax.data.tokenizers import tokenizer as tokenizers


def main() -> None:
    """Takes the turns and prints the ratio."""
    parser = paired.parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    options = parser.parse_args()
    files = sorted([*options.folder.glob("*.py"), *options.folder.glob("*.txt")])
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    tokenizer, size = (
        tokenizers.train_tokenizer(SentencePiece(vocab_size=2048), texts),
        sum(map(len, texts)),
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizers.save_tokenizer(Path(folder) / "t", tokenizer)
        bare = sentencepiece.SentencePieceProcessor(
            model_file=str(next((Path(folder) / "t").glob("*.model")))
        )
    seconds: dict[str, list[float]] = {"gptjax": [], "sentencepiece": []}
    for _ in range(options.turns):
        for name, encode in (
            ("gptjax", tokenizer.encode_all),
            (
                "sentencepiece",
                lambda texts: bare.encode(texts, out_type=int, num_threads=os.cpu_count()),
            ),
        ):
            begun = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - begun)
    times = paired.ratio(
        paired.Found(seconds["gptjax"], {}), paired.Found(seconds["sentencepiece"], {})
    )
    print(
        *(
            f"{name}: {size / statistics.median(taken) / 1e6:.2f} M characters/s"
            for name, taken in seconds.items()
        ),
        sep="\n",
    )
    print(f"gptjax takes {times} times as long as the library")
    paired.write(options.out, {"characters": size, "seconds": seconds, "times": times})


if __name__ == "__main__":
    main()
