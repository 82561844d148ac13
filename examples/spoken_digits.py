"""Spoken digits as records to learn from: WAV files beside JSON lines with `audio` and `text`.

    python examples/spoken_digits.py ../shared/data/speech/speech.tar.xz runs/digits

The archive has files DIGIT_SPEAKER_NUMBER.wav. Written are `train.jsonl` and `test.jsonl` (each
speaker's recordings 0 to 4 of a digit are held out), and for each speaker `without_NAME.jsonl` and
`only_NAME.jsonl`.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 5
"""Recordings of each digit and speaker with a smaller number are held out."""


def write_sets(archive: Path, folder: Path) -> None:
    """Unpacks an archive and writes the sets beside the sounds."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as content:
        content.extractall(folder / "sounds", filter="data")
    sets: dict[str, list[str]] = {}
    for file in sorted((folder / "sounds").rglob("*.wav")):
        digit, speaker, number = file.stem.split("_")
        record = {"audio": str(file.relative_to(folder)), "text": WORDS[int(digit)]}
        line = json.dumps(record)
        sets.setdefault("test" if int(number) < HELD_OUT else "train", []).append(line)
        sets.setdefault(f"only_{speaker}", []).append(line)
    speakers = [name for name in sets if name.startswith("only_")]
    for name in speakers:
        others = [line for other in speakers if other != name for line in sets[other]]
        sets[name.replace("only_", "without_")] = others
    for name, lines in sets.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{folder}: {', '.join(f'{name} {len(lines)}' for name, lines in sorted(sets.items()))}")


if __name__ == "__main__":
    write_sets(Path(sys.argv[1]), Path(sys.argv[2]))
