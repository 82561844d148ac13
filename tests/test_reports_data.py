"""Situations that people reported of other programs in reading text: neighbours of the reports T11
to T16, T18 and T20 of docs/reports/reports.md, which were made up here.

Each is a file with what it must be read as, or with the words of its refusal.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hf
from test_sources import packed, write_parquet

from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Characters, DataConfig, SentencePiece, Text, prepare
from gptjax.data.coverage import Coverage
from gptjax.data.documents import encodings, opening, sources
from gptjax.data.documents import parquet as parquet_files
from gptjax.data.documents.sources import Records
from gptjax.data.documents.sources import read_documents as read
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.data.tokenizers.spelling import Special

RUSSIAN = "Это обычный русский текст, который нужен для проверки кодировки файла."


def tar(name: str, content: bytes) -> bytes:
    """An archive of one file."""
    packed_file = io.BytesIO()
    with tarfile.open(fileobj=packed_file, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed_file.getvalue()


def ids_of(kind: type, high: int) -> bytes:
    """Ids of tokens, as other programs store them."""
    return np.random.default_rng(0).integers(0, high, 3000).astype(kind).tobytes()


READ = {
    "T12 JSON lines called text": ("a.txt", b'{"text": "a"}\n{"text": "b"}\n', {}, ["a", "b"]),
    "T12 an array without a suffix": ("a", b'[{"text": "a"},\n{"text": "b"}]', {}, ["a", "b"]),
    "T12 an array of texts": ("a.json", b'["a", "b \\u00e9"]', {}, ["a", "b é"]),
    "T12 an array with a mark": ("a.json", b'\xef\xbb\xbf[{"text": "a"}]', {}, ["a"]),
    "T12 semicolons": ("a.csv", b'"id";"text"\n1;"a, b"\n', {}, ["a, b"]),
    "T12 tabs in a .csv": ("a.csv", b'id\ttext\n1\t"a\tb"\n', {}, ["a\tb"]),
    "T12 a .tsv with names": ("a.tsv", b'id\ttext\n1\t"a\n', {}, ['"a']),
    "T12 JSON lines as text": ("a.txt", b'{"text": 1}\n{"text"', {"format": "text"}, None),
    "T12 braces that are no JSON": ("a.txt", b"{a}\n{b}\n", {}, ["{a}\n{b}\n"]),
    "T13 gzip without a suffix": ("a.txt", gzip.compress(b"plain"), {}, ["plain"]),
    "T13 bzip2 of JSON lines": ("a.jsonl", bz2.compress(b'{"text": "a"}\n'), {}, ["a"]),
    "T13 xz of a table": ("a.csv", lzma.compress(b"text,n\na,1\n"), {}, ["a"]),
    "T13 zstd in capitals": ("A.TXT.ZST", packed(b"plain", ".zst"), {}, ["plain"]),
    "T13 gzip in two parts": ("a.gz", gzip.compress(b"a") + gzip.compress(b"b"), {}, ["ab"]),
    "T13 UTF-7 by name": ("a.txt", RUSSIAN.encode("utf-7"), {"encoding": "utf-7"}, [RUSSIAN]),
    "T13 UTF-7 of JSON lines": (
        "a.jsonl",
        json.dumps({"text": "Größe"}, ensure_ascii=False).encode("utf-7"),
        {"encoding": "utf-7"},
        ["Größe"],
    ),
    "T13 signs that are not UTF-7": ("a.txt", b"1 + 1, +1-800, C++ +AGE- a+b-c", {}, None),
    "T13 a key that is not UTF-7": ("a.txt", b"key: 4+ABCD/z8+x0yQ==\n", {}, None),
    "T13 ASCII by name": ("a.txt", b"+BDAEMQ- +BDIEMw-", {"encoding": "ascii"}, None),
    "T14 many lines": ("a.csv", b'text\n"' + b"x\n" * 90_000 + b'"\n', {}, ["x\n" * 90_000]),
    "T14 a long field of tabs": ("a.tsv", b"n\ttext\n1\t" + b"x" * 150_000, {}, ["x" * 150_000]),
    "T14 old line ends": ("a.csv", b"text,n\r" + b"x" * 150_000 + b",1\r", {}, ["x" * 150_000]),
    "T14 a NUL and a mark": ("a.csv", b'\xef\xbb\xbftext\n"a\0b"\n', {}, ["a\0b"]),
}  # fmt: skip
"""Row and name → (file, content, settings, texts; `None` is the content itself)."""


@pytest.mark.parametrize("name", READ)
def test_files_are_what_their_content_says(name, tmp_path):
    file, content, settings, texts = READ[name]
    (tmp_path / file).write_bytes(content)
    found = [document.text for document in read(Text(str(tmp_path / file), **settings))]
    assert found == ([content.decode()] if texts is None else texts)


REFUSED = {
    "T12 a .csv without the field": ("a.csv", b"id;body\n1;a\n", ["no column 'text'"]),
    "T12 PDF": ("a.pdf", b"%PDF-1.4\n1 0 obj\n<<>>" + bytes(range(128, 255)) * 9, ["is binary"]),
    "T12 PNG": ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(range(32, 255)) * 9, ["is binary"]),
    "T12 ids of 32 bits": ("a.bin", ids_of(np.uint32, 50_000), ["is binary"]),
    "T12 an archive, packed": ("a.tgz", gzip.compress(tar("a", b"text" * 99)), ["is binary"]),
    "T13 UTF-7": ("a.txt", RUSSIAN.encode("utf-7"), ["utf-7, whose letters", "or ascii"]),
    "T13 UTF-7 in Japanese": ("a.txt", "日本語のテキスト".encode("utf-7"), ["encoding utf-7"]),
    "T13 UTF-7 in JSON": ("a.jsonl", b'{"text": "Gr+APYA3w-e"}\n', ["encoding utf-7"]),
    "T13 UTF-16 of Cyrillic": ("a.txt", RUSSIAN.encode("utf-16-le"), ["encoding utf-16-le"]),
    "T13 UTF-32": ("a.txt", b"plain text".decode().encode("utf-32-be"), ["encoding utf-32-be"]),
    "T13 Mac": ("a.txt", "Voilà un été naïf".encode("mac_roman"), ["encoding mac_roman"]),
    "T13 CP1251 in JSON": (
        "a.jsonl",
        json.dumps({"text": RUSSIAN}, ensure_ascii=False).encode("cp1251"),
        ["a.jsonl:1 is not UTF-8", "encoding cp1251"],
    ),
    "T13 CP1251 in CSV": ("a.csv", f"text\n{RUSSIAN}\n".encode("cp1251"), ["encoding cp1251"]),
    "T13 one bad byte of UTF-8": ("a.txt", "é, ü, ñ; ".encode() * 9 + b"\xe9", ["iconv -c"]),
    "T13 surrogates in UTF-8": ("a.txt", b"a \xed\xa0\xbd\xed\xb8\x80", ["iconv -c"]),
    "T13 rest after gzip": ("a.gz", gzip.compress(b"a") + b"rest", ["not a whole gzip file"]),
    "T14 a quote that never ends": ("a.csv", b'text\n"a\n', ["not a line of a table"]),
}
"""Row and name → (file, content, words of the refusal)."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_in_one_line_that_says_what_reads_it(name, tmp_path):
    file, content, words = REFUSED[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        list(read(Text(str(tmp_path / file))))
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path / file) in message
    assert all(word in message for word in words), message


def test_a_guess_needs_no_more_than_a_line_in_each_of_the_seven_bit_encodings():
    """T13: what only looks like UTF-7 is not taken for it, in any text of ours."""
    for file in sorted(Path(encodings.__file__).parents[2].rglob("*.py")):
        encodings.require_utf8(file.read_bytes()[: encodings.SAMPLE], file)


@pytest.mark.parametrize("kind", ["one value", "one page", "rows"])
def test_a_parquet_bomb_stops_at_its_bound(kind, tmp_path, monkeypatch):
    """T13: neighbours: a value that many rows share, a page that unpacks to much, many rows."""
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setattr(opening, "UNPACKED", 1 << 20)
    table = {
        "one value": pa.DictionaryArray.from_arrays(
            pa.array([0] * 4000, pa.int32()), pa.array(["x" * (1 << 19)])
        ),
        "one page": pa.array(["x" * (1 << 19)] * 20),
        "rows": pa.array(["x" * 99] * 20_000),
    }[kind]
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pa.table({"text": table}), path, compression="zstd", use_dictionary=kind != "one page"
    )
    assert path.stat().st_size < 10_000
    with parquet.ParquetFile(path) as file:
        columns = [file.metadata.row_group(0).column(0)]
    longest = {"one value": 1 << 19, "one page": 1 << 19, "rows": 99}[kind]
    together = parquet_files._rows_together(path, columns)
    assert together * longest <= parquet_files.BATCH and together >= 100
    made = []
    with pytest.raises(ConfigError, match="unpacks to more than 100 times its size") as caught:
        made.extend(len(document.text) for document in read(Text(str(path))))
    assert sum(made) <= 1 << 20 and "\n" not in str(caught.value)


# --- tokenizers, splits and folders ---------------------------------------------------------------

SCRIPTS = {
    "Chinese with a rare space": "深度学习模型的训练需要大量数据" * 600 + " ",
    "Chinese without spaces": "深度学习模型的训练需要大量数据。" * 40,
    "Thai": "นี่คือข้อความภาษาไทยสำหรับทดสอบ " * 20,
    "emoji": "".join(chr(0x1F600 + n * n % 60) for n in range(800)),
    "digits": "".join(str(n * n % 7919) for n in range(500)),
    "tabs": "a\tb" * 400,
    "one word": "aaaaaaaa" * 60,
}


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_vocabulary_that_was_made_smaller_still_writes_every_text(name, algorithm):
    """T16: neighbours in other scripts. A space without a piece of its own came back as U+2581."""
    text = SCRIPTS[name]
    made = tok.train_tokenizer(SentencePiece(vocab_size=30_000, algorithm=algorithm), [text])
    assert 259 < made.vocab_size < 30_000
    for written in (text[:200], "a b  c\n d", " ", "\u2581 \u2581", "\t x \0é"):
        assert made.decode(made.encode(written)) == written


def lossy(kind: str) -> tok.Tokenizer:
    """A published tokenizer of a few words."""
    words = {"[UNK]": 0, "the": 1, "cat": 2, "##s": 3, "sat": 4, "\u2581": 5, "e": 6, "n": 7}
    pieces = [(piece, -float(i)) for piece, i in words.items()]
    model = {
        "WordPiece": hf.models.WordPiece(words, unk_token="[UNK]"),
        "BPE": hf.models.BPE({c: n for n, c in enumerate("?thecas")}, [], unk_token="?"),
        "Unigram": hf.models.Unigram(pieces, unk_id=0),
    }[kind]
    made = hf.Tokenizer(model)
    made.normalizer = hf.normalizers.BertNormalizer()
    made.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    return tok.published("tokenizer.json", made.to_str().encode(), Special())


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_what_is_lost_is_measured_for_every_kind_of_tokenizer(kind):
    """T11 (tokenizers#517): neighbours with an unknown token; case and accents are no loss."""
    measured = Coverage(lossy(kind))
    if kind != "Unigram":
        measured.add(["the CAT sat"])
        assert measured.lost() == 0
    measured.add(["深度"] * 3)
    assert measured.lost() > 0.5 and "深" in measured.examples()
    exact = Coverage(tok.train_tokenizer(Bytes(), []))
    exact.add(["深度 \0 é"])
    assert exact.lost() == 0


def letters(size: int, seed: int) -> str:
    """Text of these many characters, which another seed makes another one."""
    return "".join(np.random.default_rng(seed).choice(list("abcdefgh \n"), size))


@pytest.mark.parametrize(
    ("sizes", "share", "least", "most"),
    [
        ([60_000, *[100] * 100], 0.05, 0.025, 0.1),
        ([60_000, 60_000, *[100] * 98], 0.05, 0.025, 0.1),
        ([-5000] * 30 + [50] * 60, 0.05, 0.005, 0.1),
        ([9000, -9000, -9000, *[200] * 200], 0.3, 0.15, 0.6),
    ],
)
def test_no_more_than_about_the_share_is_held_out(sizes, share, least, most, tmp_path):
    """T18 (autokeras#235): neighbours in JSON lines; negative sizes are copies of one document,
    which held out 99 % for 5 %, since copies are in one part."""
    texts = [letters(abs(size), n if size > 0 else 1000) for n, size in enumerate(sizes)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = prepare(
        DataConfig(
            source=Text(str(path)),
            tokenizer=Bytes(),
            validation=share,
            split="documents",
            cache=str(tmp_path / "cache"),
        )
    )
    held_out = made.validation.header.num_bytes
    assert least <= held_out / (held_out + made.train.header.num_bytes) <= most


def test_links_to_nothing_are_named_and_all_others_followed(tmp_path):
    """T15 (ir_datasets#160): neighbours: broken links, links that loop, links to links, a linked
    root, a folder linked twice, a folder that is hidden where it lies."""
    for name in ("corpus/a.txt", ".hidden/h.txt", "other/o.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    corpus = tmp_path / "corpus"
    for link, target in {
        "b.txt": corpus / "a.txt", "c.txt": corpus / "b.txt", "gone.txt": tmp_path / "nowhere",
        "one": corpus / "two", "two": corpus / "one", "h": tmp_path / ".hidden",
        "x": tmp_path / "other", "y": tmp_path / "other", "../root": corpus,
    }.items():  # fmt: skip
        (corpus / link).symlink_to(target)
    for root in (corpus, tmp_path / "root"):
        found = sources.survey(Text(str(root)))
        names = [one.name for one in read(Text(str(root)))]
        assert names == ["a.txt", "b.txt", "c.txt", "h/h.txt", "x/o.txt", "y/o.txt"]
        assert found.left_out == tuple(str(root / name) for name in ("gone.txt", "one", "two"))


@pytest.mark.parametrize("split", ["tail", "documents"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
def test_characters_of_the_other_part_are_unknown_in_every_format(split, form, tmp_path):
    """T20 (nanoGPT#109): neighbours: other formats and splits."""
    texts = [f"ab {n} " + chr(0x4E00 + n) * 2 for n in range(80)]
    path = tmp_path / f"a.{form}"
    write = {
        "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
        "csv": "text\n" + "\n".join(texts),
        "txt": "\n".join(texts),
    }
    path.write_text(write[form])
    said: list[str] = []
    made = prepare(
        DataConfig(
            source=Text(str(path), separator="\n" if form == "txt" else None),
            tokenizer=Characters(),
            validation=0.3,
            split=split,
            max_lost=1.0,
            cache=str(tmp_path / "cache"),
        ),
        said.append,
    )
    count = int((made.validation.ids[:] == made.tokenizer.unknown).sum())
    assert count > 20 and made.tokenizer.unknown not in made.train.ids[:]
    assert any(f"{count} held-out characters unknown" in line for line in said)


def test_parquet_is_known_by_its_content_and_a_long_row_is_a_bad_record(tmp_path):
    """T12, T14: neighbours in another format, also without compression or dictionaries."""
    write_parquet(tmp_path / "data", {"text": ["a", "x" * ((1 << 24) + 1), None, "b"] * 2})
    source = Text(str(tmp_path / "data"), max_bad_records=4)
    assert [document.text for document in read(source)] == ["a", "b"] * 2
    with pytest.raises(ConfigError, match=r"data:2 is longer than 16 MiB"):
        list(read(Text(str(tmp_path / "data"))))
    write_parquet(tmp_path / "b.parquet", {"1": ["x", "y"], "2": [3, 4]})
    pairs = [(one.source, one.text) for one in read(Records(str(tmp_path / "b.parquet")))]
    assert pairs == [("x", "3"), ("y", "4")]
