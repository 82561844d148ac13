"""Texts about pictures or sounds: JSON lines that name them, or a folder of them and their texts.

Read `Media`, then `read_media`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import require
from gptjax.data.documents.document import Document, Quota, require_quota

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
VIDEOS = (".apng", ".npy")
KINDS = PICTURES + SOUNDS + VIDEOS
"""Names of pictures, sounds and videos end so; a folder of pictures is a video too."""


@dataclass(frozen=True)
class Media:
    """A file of JSON lines, each with one or several pictures or videos or one sound, a prompt and
    an answer; or a folder in which the text of `cat.png` or `cat.wav` is `cat.txt`, without a
    prompt.

    All records about the same pictures are in one part of the split.
    """

    path: str
    """A file of JSON lines, or a folder."""
    image: str = "image"
    """The field with the name of a picture, video or sound, or a list, from the file's folder
    on."""
    prompt: str = "prompt"
    """The field that is read; a record may lack it."""
    answer: str = "answer"
    """The field that is the answer."""
    held_out: str | None = None
    """A file or folder of the same kind that is held out as a whole; `None` holds out
    `data.validation` of the records, by their pictures."""
    max_bad_records: int = 0
    """Records that may be left out because they cannot be read."""

    def __post_init__(self) -> None:
        require(self.path != "", "data.source.path is empty; give a file: --data.source.path FILE.")
        require_quota(self.max_bad_records)


class Pictured(NamedTuple):
    """What a document of `Media` holds as its text, in JSON."""

    prompt: str
    answer: str
    pictures: tuple[str, ...]
    """What identifies their content."""

    def dump(self) -> str:
        """Returns it as JSON."""
        return json.dumps(self._asdict(), ensure_ascii=False, sort_keys=True)

    @classmethod
    def load(cls, text: str) -> Pictured:
        """Reads what `dump` gives."""
        fields = json.loads(text)
        return cls(fields["prompt"], fields["answer"], tuple(fields["pictures"]))


def read_media(source: Media, pass_over: Callable[[str], Any] = str) -> Iterator[Document]:
    """Yields each record as a document: itself as its text, its pictures as its source.

    Args:
      pass_over: called with each record that the quota lets pass, by file, line and defect.

    Raises:
      ConfigError: a file or a record can't be read, or there is none; on the way, not at the call.
    """
    quota = Quota(source.max_bad_records, pass_over)
    digests: dict[Path, str] = {}
    parts = [(Path(source.path), None if source.held_out is None else False)]
    if source.held_out is not None:
        parts.append((Path(source.held_out), True))
    for path, held_out in parts:
        require(
            path.exists(),
            f"{path} is not there; give a file of JSON lines, or a folder of files and texts,"
            " with --data.source.path PATH.",
        )
        any_record = False
        for place, record in _folder(path) if path.is_dir() else _lines(source, path):
            if isinstance(record, str):
                quota.spend(place, record)
                continue
            missing = [file for file in record.files if not (file.is_file() or file.is_dir())]
            if missing:
                quota.spend(place, f"names {missing[0]}, which is not there")
                continue
            any_record = True
            for file in record.files:
                digests[file] = digests.get(file) or _digest(file)
            known = tuple(digests[file] for file in record.files)
            yield Document(
                Pictured(record.prompt, record.answer, known).dump(),
                place,
                source=" ".join(known),
                held_out=held_out,
                pictures=tuple(map(str, record.files)),
            )
        require(any_record, f"{path} has no records; give others with --data.source.path PATH.")


class _Record(NamedTuple):
    prompt: str
    answer: str
    files: list[Path]


def _lines(source: Media, path: Path) -> Iterator[tuple[str, _Record | str]]:
    """The place of each line, and its record or what is wrong with it."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path.name}:{number}", _record(source, path.parent, line)


def _record(source: Media, folder: Path, line: bytes) -> _Record | str:
    try:
        fields = json.loads(line.decode())
    except (ValueError, RecursionError):
        return "is not JSON"
    if not isinstance(fields, dict):
        return "is not an object"
    names = fields.get(source.image)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        return f"has no picture in {source.image!r}"
    prompt, answer = fields.get(source.prompt, ""), fields.get(source.answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(prompt, str) or not isinstance(answer, str) or not answer.strip():
        return f"has no text in {source.prompt!r} or {source.answer!r}"
    return _Record(prompt, answer, [folder / name for name in names])


def _folder(path: Path) -> Iterator[tuple[str, _Record | str]]:
    """Each picture or sound of a folder that has a text beside it, in the order of their names."""
    for picture in sorted(file for file in path.rglob("*") if file.suffix.lower() in KINDS):
        caption = picture.with_suffix(".txt")
        if not caption.is_file():
            continue
        place = picture.relative_to(path).as_posix()
        try:
            text = caption.read_text("utf-8").strip()
        except ValueError:
            yield place, "has a caption that is not UTF-8"
            continue
        yield place, _Record("", text, [picture]) if text else "has an empty caption"


def _digest(path: Path) -> str:
    if path.is_dir():  # of a video: names tell the order of its frames
        inside = sorted(one for one in path.iterdir() if one.suffix.lower() in PICTURES)
        names = "".join(f"{_digest(one)}  {one.name}\n" for one in inside if one.is_file())
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
