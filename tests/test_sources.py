"""Laws of sources: every document once, in one order, byte for byte; what can't be read is named
with what mends it."""

from __future__ import annotations

import ast
import bz2
import gzip
import importlib.util
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import PROSE

from gptjax.core.config import ConfigError, from_dict, to_dict
from gptjax.data.documents import encodings, opening, sources, standard_library, structured
from gptjax.data.documents import text as text_files
from gptjax.data.documents.sources import Document, Mixture, Text, Tfds
from gptjax.data.documents.sources import read_documents as read

ODD = "é 🙂\u2028 a\u0085b \0\r\n\tend "


def jsonl(path: Path, *lines: str | bytes | dict) -> str:
    raw = [
        (
            line
            if isinstance(line, bytes)
            else (
                line.encode()
                if isinstance(line, str)
                else json.dumps(line, ensure_ascii=False).encode()
            )
        )
        for line in lines
    ]
    content = b"\n".join(raw) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def fingerprint(source: sources.Source) -> str:
    return sources.survey(source).fingerprint


def refused(source: sources.Source, *words: str) -> None:
    """Reading `source` ends in one line that holds all `words`."""
    with pytest.raises(ConfigError) as caught:
        list(read(source))
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?"))
    for word in words:
        assert word in message, message


# --- files


def test_a_file_is_one_document_byte_for_byte(tmp_path):
    for name, pack in (("a.txt", bytes), ("b.txt.gz", gzip.compress), ("c", bytes)):
        (tmp_path / name).write_bytes(pack(ODD.encode()))
        assert list(read(Text(str(tmp_path / name)))) == [Document(ODD, name)]


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    path = jsonl(tmp_path / "b.jsonl", b'\xef\xbb\xbf{"text": "hello"}')
    assert [d.text for p in (tmp_path / "a.txt", path) for d in read(Text(str(p)))] == [
        "hello",
        "hello",
    ]


def test_jsonl_has_a_document_a_line_whatever_the_text_holds(tmp_path):
    texts = [ODD, "\u2028\u2029\u0085\x0b\x0c", "plain", "x" * 300_000]
    for name in ("a.jsonl", "b.jsonl.gz", "c.NDJSON"):
        path = jsonl(
            tmp_path / name,
            {"text": texts[0]},
            "",
            {"text": texts[1], "n": 1},
            "  \r",
            {"text": ""},
            {"text": texts[2]},
            {"text": texts[3]},
        )
        assert list(read(Text(path))) == [
            Document(t, f"{name}:{n}") for t, n in zip(texts, (1, 3, 6, 7), strict=True)
        ]


def test_windows_line_ends_and_a_missing_last_newline_are_fine(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n{"text": "b"}')
    assert [d.text for d in read(Text(str(path)))] == ["a", "b"]


def test_the_field_can_be_chosen(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": 1, "body": "here"})
    assert [d.text for d in read(Text(path, field="body"))] == ["here"]
    refused(Text(path, field="bodi"), "a.jsonl:1", "'bodi'", "'body'", "--data.source.field")


BAD = {
    b'{"text": "\xe9"}': "is not UTF-8",
    b'{"text": ': "is not JSON",
    b"[1]": "not a JSON object",
    b'{"txt": "a"}': "no field 'text'",
    b'{"text": 3}': "no text in 'text'",
    b'{"text": null}': "no text in 'text'",
    b'{"text": NaN}': "no text in 'text'",
    b'{"text": "a", "text": "b"}': "duplicate key 'text'",
    b'{"text": "ab\\ud800"}': "lone surrogate, U+D800, at character 2",
    b'{"text": "a", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}": "too deeply",
    b'{"text": "a", "x": ' + b"9" * 5000 + b"}": "is not JSON",
}


@pytest.mark.parametrize("line", BAD, ids=list(BAD.values()))
def test_a_bad_record_is_named_or_passed_over_as_often_as_allowed(line, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "one"}, line, {"text": "two"}, line)
    refused(Text(path), f"{path}:2 ", BAD[line], "--data.source.max-bad-records")
    refused(Text(path, max_bad_records=1), f"{path}:4 ")
    assert [d.text for d in read(Text(path, max_bad_records=2))] == ["one", "two"]


GOOD = (
    {"text": "plain"},
    {"text": ODD},
    {"text": "\u2028\u2029\u0085\x0b\x0c"},
    {"text": 'say "\\\\" \u0000 é'},
)
FIXTURE = {
    1: (b'\xef\xbb\xbf{"text": "marked"}', ""),
    2: (json.dumps(GOOD[2], ensure_ascii=False).encode(), ""),
    3: (b'{"text": "caf\xe9"}', "is not UTF-8 (byte 0xe9 at offset 13 of the line)"),
    4: (b'{"text": "nul \0 raw"}', "is not JSON"),
    5: (json.dumps(GOOD[3]).encode(), ""),
    6: (b'{"text": "half \\ud83d"}', "has a lone surrogate, U+D83D, at character 5 of 'text'"),
    7: (b'{"text": "a", "text": "b"}', "duplicate key 'text'"),
    8: (b'{"txet": "a"}', "has no field 'text' (it has 'txet'"),
    9: (b'{"text": "a", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "is nested too deeply"),
    10: (b'{"text": ""}', ""),
    11: (json.dumps(GOOD[1]).encode(), ""),
    12: (b'{"text": "cut of', "is not JSON"),
}
"""Line number → (bytes, what is wrong with it). The last has no newline."""


@pytest.mark.row(45)
def test_twelve_odd_lines_are_read_counted_or_refused_each_by_its_number(tmp_path, record_property):
    path, bad = tmp_path / "a.jsonl", {n: why for n, (_, why) in FIXTURE.items() if why}
    path.write_bytes(b"\n".join(line for line, _ in FIXTURE.values()))
    wanted = [
        ("marked", "a.jsonl:1"),
        (GOOD[2]["text"], "a.jsonl:2"),
        (GOOD[3]["text"], "a.jsonl:5"),
        (ODD, "a.jsonl:11"),
    ]
    assert list(read(Text(str(path), max_bad_records=len(bad)))) == [
        Document(*pair) for pair in wanted
    ]
    counted = sources.survey(Text(str(path), max_bad_records=99))
    assert counted.documents == len(wanted) and [
        message_lines.split()[0] for message_lines in counted.passed_over
    ] == [f"{path}:{n}" for n in bad]
    for allowed, (number, why) in enumerate(bad.items()):
        refused(
            Text(str(path), max_bad_records=allowed),
            f"{path}:{number} ",
            why,
            "--data.source.max-bad-records",
            f"now {allowed}",
        )
    for content in (b"", b"\n \n", b'{"text": ""}\n'):
        path.write_bytes(content)
        refused(Text(str(path)), "a.jsonl is empty")
    record_property(
        "figure",
        f"12 of 12 lines as specified: {len(bad)} refused by file:line, {len(wanted)} read byte for"
        " byte, 1 empty",
    )


def test_what_is_missing_empty_or_unreadable_is_named(tmp_path):
    (tmp_path / "story.txt").write_bytes(b"")
    refused(
        Text(str(tmp_path / "story.tx")),
        "is not there",
        "--data.source.path",
        "Did you mean 'story.txt'?",
    )
    refused(Text(str(tmp_path / "no/such")), "is not there", "--data.source.path")
    refused(Text(str(tmp_path / "story.txt")), "story.txt is empty", "--data.source.path")
    refused(Text(jsonl(tmp_path / "e.jsonl", {"text": ""})), "e.jsonl is empty")
    refused(Text("/dev/null"), "neither a file nor a folder")
    (tmp_path / "latin.txt").write_bytes("abc é".encode("latin-1"))
    refused(
        Text(str(tmp_path / "latin.txt")),
        "latin.txt is not UTF-8 (byte 0xe9 at offset 4)",
        "--data.source.encoding cp1252",
    )
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfab\xe9")
    refused(Text(str(tmp_path / "bom.txt")), "byte 0xe9 at offset 5")
    (tmp_path / "wide.txt").write_bytes("abc".encode("utf-16"))
    refused(Text(str(tmp_path / "wide.txt")), "offset 0", "--data.source.encoding utf-16")


def test_a_damaged_gzip_file_is_named(tmp_path):
    whole = gzip.compress(json.dumps({"text": "abc" * 1000}).encode())
    for name in ("a.txt.gz", "a.jsonl.gz"):
        for content in (
            whole[:-12],
            whole[:5],
            b"not gzip at all",
            whole[:20] + bytes(20) + whole[40:],
        ):
            (tmp_path / name).write_bytes(content)
            refused(
                Text(str(tmp_path / name)), name, "is not a whole gzip file", "--data.source.path"
            )


# --- formats, compressions and encodings

TEXTS = ['one, "two"\nthree', "深度 é 🙂", "x" * 150_000]


def as_csv(texts) -> str:
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    return "id,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(quoted))


def write_parquet(path: Path, columns: dict) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)


def packed(content: bytes, suffix: str) -> bytes:
    import pyarrow as pa

    if suffix == ".zst":
        return pa.compress(content, codec="zstd", asbytes=True)
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    return pack[suffix](content)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_rows_of_every_format_are_the_same_texts(tmp_path, suffix):
    records = [
        {"id": n, "text": text, "more": {"b": [text, "]{,"]}} for n, text in enumerate(TEXTS)
    ]
    forms = {
        "a.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "b.json": json.dumps(records),
        "c.json": json.dumps(records, ensure_ascii=False, indent=2),
        "d.json": "\n".join(map(json.dumps, records)),
        "e.csv": as_csv(TEXTS),
    }
    for name, content in forms.items():
        path = tmp_path / (name + suffix)
        path.write_bytes(packed(content.encode(), suffix))
        assert [document.text for document in read(Text(str(path)))] == TEXTS, name
        refused(Text(str(path), field="body"), "'body'", "--data.source.field")
    if not suffix:
        write_parquet(tmp_path / "f.parquet", {"text": TEXTS, "id": [1, 2, 3]})
        assert [d.text for d in read(Text(str(tmp_path / "f.parquet")))] == TEXTS
        refused(Text(str(tmp_path / "f.parquet"), field="body"), "no column 'body'", "'id'")
        refused(Text(str(tmp_path / "f.parquet"), field="id"), "no text in 'id' but a number")


def test_a_damaged_file_of_every_compression_is_named(tmp_path):
    for suffix, name in ((".bz2", "bzip2"), (".xz", "xz"), (".zst", "zstd")):
        path = tmp_path / f"a.txt{suffix}"
        for content in (packed(b"abc" * 9999, suffix)[:-9], b"not packed at all"):
            path.write_bytes(content)
            refused(Text(str(path)), f"is not a whole {name} file", "--data.source.path")


def test_a_field_that_nothing_has_is_an_error_and_a_format_can_be_chosen(tmp_path):
    (tmp_path / "a.txt").write_text("plain")
    refused(Text(str(tmp_path / "a.txt"), field="body"), "'body'", "omit --data.source.field")
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    refused(Text(str(tmp_path / "b.csv")), "no column 'text'", "--data.source.format text")
    assert [d.text for d in read(Text(str(tmp_path / "b.csv"), format="text"))] == ["x,y\n1,2\n"]
    (tmp_path / "c.json").write_text('{\n  "name": "settings"\n}')
    assert len(list(read(Text(str(tmp_path / "c.json"))))) == 1, "source text, not records"
    (tmp_path / "d.json").write_text('[{"text": "a"}, {"text"')
    refused(Text(str(tmp_path / "d.json")), "d.json ends inside a JSON array")
    (tmp_path / "e.tsv").write_text("1\tone\n2\ttwo\n")
    result = read(Text(str(tmp_path / "e.tsv"), format="tsv", field="2"))
    assert [d.text for d in result] == ["one", "two"]


def test_fields_of_fields_and_whole_numbers_are_read(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"m": {"t": "here"}, "m.t": "there", "label": 3})
    assert [d.text for d in read(Text(path, field="m.t"))] == ["there"]
    path = jsonl(tmp_path / "b.jsonl", {"m": {"t": "here"}, "label": 3, "good": True, "z": 0.5})
    assert [d.text for d in read(Text(path, field="m.t"))] == ["here"]
    refused(Text(path, field="m.u"), "no field 'm.u'")
    for field, label in (("label", "3"), ("good", "true")):
        (result,) = read(sources.Records(path, "m.t", field))
        assert (result.source, result.text) == ("here", label)
    refused(sources.Records(path, "m.t", "z"), "no text in 'z' but a number")


ENCODED = {
    "gb18030": "深度学习模型的训练需要大量的数据。这是一个测试文件，用来检查编码的猜测。",
    "big5": "深度學習模型的訓練需要大量的資料。這是一個測試檔案，用來檢查編碼。",
    "shift_jis": "これは日本語のテキストです。文字コードの推測が正しいかどうかを確認します。",
    "euc_jp": "これは日本語のテキストです。文字コードの推測が正しいかどうかを確認します。",
    "cp1251": "Это обычный русский текст, который нужен для проверки кодировки файла.",
    "koi8_r": "Это обычный русский текст, который нужен для проверки кодировки файла.",
    "cp1252": "Voilà un texte français écrit à l’été, où l’œuvre naïve côtoie “Noël”.",
    "latin-1": "Der schöne Tag über der Straße; Größe, Übung und Äpfel.",
    "cp1250": "Zażółć gęślą jaźń, źdźbło trawy i chrząszcz brzmi w trzcinie.",
    "utf-16-le": "plain English text without a mark",
    "utf-16-be": "plain English text without a mark",
    "utf-16": "with a mark",
    "utf-32": "with a mark",
    "euc_kr": "이것은 한국어 텍스트입니다. 파일의 인코딩을 올바르게 추측하는지 확인합니다.",
    "cp1253": "Αυτό είναι ένα ελληνικό κείμενο, για να ελέγξουμε την κωδικοποίηση.",
    "cp1254": "Bu, dosyanın kodlamasını denetlemek için yazılmış Türkçe bir metindir; ığdır.",
    "cp1255": "זה טקסט בעברית שנועד לבדוק את הקידוד של הקובץ ואת הניחוש שלו.",
    "cp1256": "هذا نص باللغة العربية لاختبار ترميز الملف والتخمين الصحيح له.",
    "cp1257": "Tai yra lietuviškas tekstas, skirtas failo koduotei patikrinti: žąsis, šuo.",
    "cp874": "นี่คือข้อความภาษาไทยสำหรับทดสอบการเข้ารหัสของแฟ้ม",
    "iso8859_2": "Příliš žluťoučký kůň úpěl ďábelské ódy; žlutá řeka.",
    "iso2022_jp": "これは日本語のテキストです。文字コードの推測を確認します。",
    "hz": "深度学习模型的训练需要大量的数据。",
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_another_encoding_is_guessed_aloud_and_read_when_it_is_named(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(ENCODED[encoding].encode(encoding))
    with pytest.raises(ConfigError) as caught:
        list(read(Text(str(tmp_path / "a.txt"))))
    likely = re.search(r"--data.source.encoding (\S+?)[.,]", str(caught.value))[1]
    for name in (likely, encoding):
        result = list(read(Text(str(tmp_path / "a.txt"), encoding=name)))
        assert [d.text for d in result] == [ENCODED[encoding]]
    lines = json.dumps({"text": ENCODED[encoding]}, ensure_ascii=False) + "\n"
    (tmp_path / "a.jsonl").write_bytes(lines.encode(encoding))
    result = list(read(Text(str(tmp_path / "a.jsonl"), encoding=encoding)))
    assert [d.text for d in result] == [ENCODED[encoding]]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_bomb_of_every_compression_stops_at_its_bound(suffix, tmp_path, monkeypatch):
    """T13: neighbours of the gzip bomb below, with a smaller bound."""
    monkeypatch.setattr(opening, "UNPACKED", 1 << 20)
    path = tmp_path / f"bomb.txt{suffix}"
    path.write_bytes(packed(b"x" * (16 << 20), suffix))
    assert path.stat().st_size < 1 << 17
    with pytest.raises(ConfigError, match="unpacks to more than 100 times its size") as caught:
        list(read(Text(str(path))))
    assert int(re.search(r"at least (\d+) MiB", str(caught.value))[1]) <= 14


def test_archives_and_text_in_signs_of_ascii_are_not_read_as_text(tmp_path):
    """T13: neighbours: a zip archive, and what only looks like HZ."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "text " * 1000)
    refused(Text(str(tmp_path / "a.zip")), "a.zip is binary", "unpack it")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.zip", "a.zip")
    refused(Text(str(tmp_path / "a.tar")), "a.tar is binary", "unpack it")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\n1 0 obj\n<<>>")
    refused(Text(str(tmp_path / "a.pdf")), "a.pdf is binary", "it is a PDF")
    (tmp_path / "a.lisp").write_text('(format t "~{~a~^, ~}~%" rest) ; ~{ab~}')
    assert len(list(read(Text(str(tmp_path / "a.lisp"))))) == 1


def test_russian_in_small_letters_is_not_taken_for_hebrew():
    """T13: all its bytes are beyond those of Hebrew's first letter, some beyond its last."""
    text = "это обычный русский текст, который нужен для проверки кодировки"
    assert encodings.guess(text.encode("cp1251")) == "cp1251"


def test_a_wrong_encoding_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc \xff\xff def")
    refused(Text(str(tmp_path / "a.txt"), encoding="shift_jis"), "is not shift_jis", "offset 4")
    for name in ("utf-7x", "rot13", "base64", ""):
        with pytest.raises(ConfigError, match=r"--data\.source\.encoding"):
            Text("a.txt", encoding=name)


def test_binary_files_are_refused_alone_and_left_out_of_a_folder_by_name(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50_000, 5000).astype(np.uint16).tobytes()
    (tmp_path / "train.bin").write_bytes(tokens)
    refused(Text(str(tmp_path / "train.bin")), "train.bin is binary")
    (tmp_path / "a.txt").write_text("text")
    result = sources.survey(Text(str(tmp_path)))
    assert result.documents == 1 and result.left_out == (str(tmp_path / "train.bin"),)


def test_files_of_a_folder_that_are_not_text_count_as_bad_records(tmp_path):
    (tmp_path / "a.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (tmp_path / "b.txt").write_text("fine")
    refused(Text(str(tmp_path)), "a.txt is not UTF-8")
    result = sources.survey(Text(str(tmp_path), max_bad_records=1))
    assert result.documents == 1 and "a.txt is not UTF-8" in result.passed_over[0]


@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n\n", "\n"])
def test_a_separator_divides_a_file_into_documents(separator, tmp_path, monkeypatch):
    texts = [f"text {n} " + "y" * (n * 7 % 90) for n in range(200)]
    (tmp_path / "a.txt").write_text(separator.join(texts), newline="")
    for size in (text_files.PIECE, 500):
        monkeypatch.setattr(text_files, "PIECE", size)
        result = list(read(Text(str(tmp_path / "a.txt"), separator=separator)))
        assert [d.text for d in result] == texts
    assert len({d.name for d in result}) == len(texts)


# --- in bounded memory


@pytest.mark.parametrize(
    "text",
    [
        "line one\n" * 500,
        "no newline " * 400,
        "é🙂中" * 700,
        "\n" * 4000,
        "ab\n" + "🙂" * 1500 + "\n" + "c" * 900,
    ],
)
def test_the_pieces_of_a_long_text_are_the_text(tmp_path, monkeypatch, text):
    monkeypatch.setattr(text_files, "PIECE", 1000)
    content = text.encode()
    for name, pack in (("a.txt", bytes), ("b.txt.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(content))
        result = list(read(Text(str(tmp_path / name))))
        assert "".join(d.text for d in result) == text and len(result) > 3
        assert all(len(d.text.encode()) <= 1000 for d in result)
        starts = [len("".join(d.text for d in result[:i]).encode()) for i in range(len(result))]
        assert [d.name for d in result] == [name, *(f"{name}@{at}" for at in starts[1:])]
        assert result[0].text.endswith("\n") or b"\n" not in content[500:1000]


def test_a_text_is_cut_only_if_it_is_longer_than_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE", 1000)
    for size, count in ((1, 1), (999, 1), (1000, 1), (1001, 2), (2000, 2), (2001, 3)):
        (tmp_path / "a.txt").write_text("x" * size)
        assert len(list(read(Text(str(tmp_path / "a.txt"))))) == count
    (tmp_path / "a.txt").write_bytes(b"x" * 1500 + b"\xe9" + b"x" * 1500)
    refused(Text(str(tmp_path / "a.txt")), "byte 0xe9 at offset 1500")


def test_a_line_too_long_to_be_read_is_a_bad_record(tmp_path, monkeypatch):
    monkeypatch.setattr(structured, "LINE", 1 << 20)
    lines = [{"text": "a"}, {"text": "x" * (1 << 20)}, {"text": "b"}, {"text": "x" * (3 << 20)}]
    path = jsonl(tmp_path / "a.jsonl", *lines)
    refused(Text(path), "a.jsonl:2 is longer than 1 MiB", "--data.source.max-bad-records")
    assert [d.name for d in read(Text(path, max_bad_records=2))] == ["a.jsonl:1", "a.jsonl:3"]


GROWTH = """
import sys
import zipfile
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, DataConfig, SentencePiece, Text, prepare
from gptjax.data.documents import sources
import numpy, sentencepiece
config = DataConfig(source=Text(sys.argv[1]), tokenizer=eval(sys.argv[3]), cache=sys.argv[2])
def peak():  # not getrusage, whose maximum begins with that of the process that started this one
    lines = open("/proc/self/status")
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
try:
    if sys.argv[3] != "None":
        print(prepare(config).train.header.num_bytes)
    else:
        print(sources.survey(config.source).documents)
except ConfigError as error:
    print(error)
print((peak() - before) * 1024)
"""


def growth(path: Path, cache: Path, tokenizer: str) -> tuple[str, float]:
    """What a process says that reads `path`, and by how many bytes its memory grows."""
    command = [sys.executable, "-c", GROWTH, str(path), str(cache), tokenizer]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    message_lines, grown = done.stdout.splitlines()
    return message_lines, float(grown)


def one_line_of(path: Path, size: int) -> Path:
    """A file of `size` bytes without a newline: a million letters, and a hole, which reads as
    NULs."""
    with path.open("wb") as file:
        file.write(b"the cat and the dog " * 50_000)
        file.truncate(size)
    return path


@pytest.mark.row(46)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_memory_does_not_grow_with_the_longest_text(name, tmp_path, record_property):
    message_lines, grown = growth(one_line_of(tmp_path / name, 200 << 20), tmp_path, "None")
    assert (
        message_lines == "25"
        if name == "a.txt"
        else "a.jsonl:1 is longer than 16 MiB" in message_lines
    )
    record_property(
        "figure",
        f"{name} of one line of 200 MiB: {'split' if name == 'a.txt' else 'refused by file:line'},"
        f" memory +{grown / 1e6:.0f} MB",
    )
    assert grown < 1e8


@pytest.mark.row(46)
@pytest.mark.fault
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("tokenizer", "most"), [("Bytes()", 1 << 30), ("SentencePiece(vocab_size=320)", 1 << 28)]
)
def test_a_gigabyte_in_one_line_is_tokenised_in_bounded_memory(
    tokenizer, most, tmp_path, record_property
):
    """SentencePiece takes a quarter of it, since it takes a minute for that."""
    words = "".join(f"{i % 977} went to {i % 31} and {i % 7919}; " for i in range(40_000)).encode()
    with (tmp_path / "a.txt").open("wb") as file:
        for _ in range(1 + most // len(words)):
            file.write(words)
    size = (tmp_path / "a.txt").stat().st_size
    message_lines, grown = growth(tmp_path / "a.txt", tmp_path, tokenizer)
    assert 0.8 * size < int(message_lines) < size
    record_property(
        "figure",
        f"{size / 1e9:.2f} GB without a newline tokenised by {tokenizer}: memory"
        f" +{grown / 1e6:.0f} MB",
    )
    assert grown < 3e8


@pytest.mark.row(47)
def test_a_gzip_bomb_stops_at_its_bound_and_half_a_file_is_named(tmp_path, record_property):
    most = 0.0
    for name in ("bomb.txt.gz", "bomb.jsonl.gz"):
        with gzip.open(tmp_path / name, "wb") as file:
            for _ in range(200):
                file.write(b"x" * (1 << 20))
        packed = (tmp_path / name).stat().st_size
        message_lines, grown = growth(tmp_path / name, tmp_path, "None")
        assert (
            packed < 250_000
            and f"{tmp_path / name} unpacks to more than 100 times its size" in message_lines
            and "unpack it yourself" in message_lines
        )
        assert int(re.search(r"at least (\d+) MiB", message_lines)[1]) < 100
        assert grown < 1e8
        most = max(most, grown)
    record_property(
        "figure",
        f"2 of 2 files of {packed / 1e3:.0f} kB that unpack to 200 MiB stopped at"
        f" {re.search(r'at least (.*?),', message_lines)[1]}, memory +{most / 1e6:.0f} MB",
    )
    whole = gzip.compress("".join(PROSE * 300).encode())
    (tmp_path / "half.txt.gz").write_bytes(whole[: len(whole) // 2])
    refused(
        Text(str(tmp_path / "half.txt.gz")),
        "half.txt.gz is not a whole gzip file",
        "fetch it again",
    )
    (tmp_path / "much.txt.gz").write_bytes(gzip.compress(b"again and again\n" * 200_000))
    assert len(next(iter(read(Text(str(tmp_path / "much.txt.gz"))))).text) == 3_200_000, (
        "what is small may be as repetitive as it likes"
    )


# --- folders


def test_a_folder_is_read_in_sorted_order_without_hidden_and_binary_files(tmp_path):
    left_out = {"a/.hid/x.txt": b"x", ".x.txt": b"x", "pic.png": b"\x89PNG\0\0", "e.txt": b""}
    for name, content in {
        "b.txt": b"B",
        "a/z.md": b"Z",
        "c.txt.gz": gzip.compress(b"C"),
        **left_out,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    jsonl(tmp_path / "d.jsonl", {"text": "D1"}, {"text": "D2"})
    result = [
        ("Z", "a/z.md"),
        ("B", "b.txt"),
        ("C", "c.txt.gz"),
        ("D1", "d.jsonl:1"),
        ("D2", "d.jsonl:2"),
    ]
    assert list(read(Text(str(tmp_path)))) == [Document(*pair) for pair in result]
    assert [d.text for d in read(Text(str(tmp_path), pattern="*.txt"))] == ["B"]
    assert [d.text for d in read(Text(str(tmp_path), pattern="**/*.md"))] == ["Z"]
    refused(
        Text(str(tmp_path), pattern="*.rst"),
        "no file that matches",
        "'*.rst'",
        "--data.source.pattern",
    )
    (tmp_path / "wide.txt").write_bytes("abc".encode("utf-16"))
    refused(Text(str(tmp_path)), "wide.txt is not UTF-8", "--data.source.pattern")


def test_links_to_files_and_folders_are_followed_and_cycles_end(tmp_path):
    corpus, other = tmp_path / "corpus", tmp_path / "other"
    for name in ("corpus/a.txt", "other/b.txt", "other/deep/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (corpus / "file.txt").symlink_to(other / "b.txt")
    (corpus / "more").symlink_to(other)
    (other / "deep" / "up").symlink_to(other)
    (corpus / "self").symlink_to(corpus)
    result = [d.name for d in read(Text(str(corpus)))]
    assert result == ["a.txt", "file.txt", "more/b.txt", "more/deep/c.txt"]
    assert [d.name for d in read(Text(str(corpus), pattern="more/**/*.txt"))] == result[2:]
    assert [d.name for d in read(Text(str(corpus), pattern="*/[ab].*"))] == ["more/b.txt"]


def test_bad_records_are_counted_over_the_whole_folder(tmp_path):
    for name in "ab":
        jsonl(tmp_path / f"{name}.jsonl", "{", {"text": name})
    refused(Text(str(tmp_path), max_bad_records=1), "b.jsonl:1")
    assert len(list(read(Text(str(tmp_path), max_bad_records=2)))) == 2


def test_reading_is_lazy(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "one"}, "{")
    assert next(read(Text(path))).text == "one"


def test_the_standard_library_is_always_there():
    documents = list(read(Text()))
    names = [d.name for d in documents]
    assert (
        names == sorted(names)
        and len(set(names)) == len(names)
        and {"json/decoder.py", "typing.py", "asyncio/base_events.py"} <= set(names)
    )
    assert not any(
        part in ("site-packages", "test", "tests", "idle_test")
        for name in names
        for part in name.split("/")
    )
    assert 8e6 < sum(len(d.text.encode()) for d in documents) < 30e6
    assert all(d.text for d in documents), "urllib/__init__.py, for one, is empty"
    ast.parse(documents[len(documents) // 2].text)


def test_a_library_without_sources_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(standard_library.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    refused(Text(), "no .py files", "--data.source.path")
    (tmp_path / "old.py").write_bytes(b"# coding: latin-1 \xe9")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "new.py").write_text("x")
    assert list(read(Text())) == [Document("x", "new.py")]


# --- mixtures and fingerprints


def test_every_prefix_of_a_mixture_has_each_source_at_its_share(tmp_path):
    sizes = {"a": [1, 50, 7], "b": [400, 3], "c": [20]}
    paths = [
        jsonl(tmp_path / f"{n}.jsonl", *({"text": n * s[i % len(s)]} for i in range(3000)))
        for n, s in sizes.items()
    ]
    mixture = Mixture(tuple(Text(p) for p in paths), (2.0, 1.0, 1.0))
    given, shares = [0, 0, 0], (0.5, 0.25, 0.25)
    for text, name, *_ in islice(read(mixture), 4000):
        given["abc".index(name[0])] += len(text)
        for had, share in zip(given, shares, strict=True):
            assert abs(had - share * sum(given)) <= 400, (
                "a source is never further off than the longest document"
            )
    assert list(islice(read(mixture), 99)) == list(islice(read(mixture), 99))


def test_a_mixture_repeats_nothing_and_ends_with_the_first_that_ends(tmp_path):
    short, long = (
        jsonl(tmp_path / "s.jsonl", *[{"text": "s"}] * 5),
        jsonl(tmp_path / "l.jsonl", *[{"text": "l"}] * 100),
    )
    names = [d.name for d in read(Mixture((Text(short), Text(long)), (1.0, 1.0)))]
    assert (
        len(set(names)) == len(names)
        and sum(n[0] == "s" for n in names) == 5
        and 5 <= sum(n[0] == "l" for n in names) <= 6
    )


def test_one_source_alone_is_itself(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *({"text": str(i)} for i in range(9)))
    assert list(read(Mixture((Text(path),), (3.0,)))) == list(read(Text(path)))


def test_the_fingerprint_follows_names_and_texts_and_not_the_place(tmp_path):
    prints = set()
    for texts in (["a", "b"], ["ab"], ["a", "", "b"], ["b", "a"], ["a", "c"]):
        prints.add(fingerprint(Text(jsonl(tmp_path / "x.jsonl", *({"text": t} for t in texts)))))
    assert len(prints) == 5, "an empty document shifts the line numbers that are names"
    (tmp_path / "moved").mkdir()
    path = jsonl(tmp_path / "moved/x.jsonl", {"text": "a"}, {"text": "c"})
    assert fingerprint(Text(path)) in prints
    assert (
        fingerprint(Text(path))
        == fingerprint(Text(path, max_bad_records=3))
        == fingerprint(Mixture((Text(path),), (1.0,)))
    )


def test_configs_survive_json_and_refuse_what_cannot_be():
    for config in (Text(), Tfds("x"), Mixture((Text("a"), Tfds("b")), (1.0, 2.0))):
        assert (
            from_dict(
                sources.Source,
                json.loads(json.dumps({"kind": type(config).__name__, **to_dict(config)})),
            )
            == config
        )
    for wrong in (
        {"path": ""},
        {"pattern": ""},
        {"pattern": "/etc/*"},
        {"pattern": "../*"},
        {"max_bad_records": -1},
    ):
        with pytest.raises(
            ConfigError, match="--data.source." + next(iter(wrong)).replace("_", "-")
        ):
            Text(**wrong)
    for parts, weights in (
        ((), ()),
        ((Text(),), (1.0, 2.0)),
        ((Text(),), (0.0,)),
        ((Text(),), (float("nan"),)),
    ):
        with pytest.raises(ConfigError, match="weights"):
            Mixture(parts, weights)


# --- TensorFlow Datasets


needs_tfds = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow_datasets"),
    reason="tensorflow-datasets is not installed",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path]:
    """(data_dir, folder of the data set `mine`), with 30 documents."""
    root = tmp_path_factory.mktemp("tfds")
    path = jsonl(root / "a.jsonl", *({"text": f"{i} {ODD}"} for i in range(30)))
    return root / "data", sources.prepare_tfds(Text(path), root / "data", "mine")


@needs_tfds
def test_a_prepared_data_set_gives_the_same_texts_in_order_without_tensorflow(prepared):
    data_dir, folder = prepared
    documents = list(read(Tfds("mine", data_dir=str(data_dir))))
    assert documents == [Document(f"{i} {ODD}", f"mine:train:{i}") for i in range(30)]
    for same in (Tfds(str(folder)), Tfds("mine:1.0.0", data_dir=str(data_dir))):
        assert list(read(same)) == documents
    assert [d.text for d in read(Tfds("mine", split="train[:3]", data_dir=str(data_dir)))] == [
        d.text for d in documents[:3]
    ]
    assert "tensorflow" not in sys.modules


@needs_tfds
def test_a_data_set_in_parquet_is_read_too(tmp_path):
    import tensorflow_datasets as tfds

    class Rows(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
        def _split_generators(self, dl_manager):
            return {"test": ((i, {"id": i, "body": f"{i} é", "raw": b"\xe9"}) for i in range(4))}

    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Scalar(np.int64),
            "body": tfds.features.Text(),
            "raw": tfds.features.Text(),
        }
    )
    described = {
        "name": "rows",
        "version": "2.0.0",
        "config": "small",
        "features": features,
        "disable_shuffling": True,
    }
    Rows(
        **described, split_datasets={}, data_dir=tmp_path, file_format="parquet"
    ).download_and_prepare()
    for name in ("rows", "rows/small", "rows/small:2.0.0"):
        assert [
            d.text for d in read(Tfds(name, split="test", field="body", data_dir=str(tmp_path)))
        ] == [f"{i} é" for i in range(4)]
    refused(
        Tfds("rows", split="test", data_dir=str(tmp_path)),
        "no field 'text'",
        "body, id, raw",
        "--data.source.field",
    )
    refused(Tfds("rows", split="test", field="id", data_dir=str(tmp_path)), "no text in 'id'")
    refused(
        Tfds("rows", split="test", field="raw", data_dir=str(tmp_path)), "rows:test:0 is not UTF-8"
    )
    refused(
        Tfds("rows", field="body", data_dir=str(tmp_path)),
        "no split 'train'",
        "test",
        "--data.source.split",
    )
    assert "tensorflow" not in sys.modules


@needs_tfds
def test_what_is_not_prepared_names_the_command_that_prepares_it(prepared, tmp_path):
    data_dir, folder = prepared
    refused(
        Tfds("lm1b", data_dir=str(data_dir)),
        f"tfds build lm1b --data_dir={data_dir} --file_format=array_record",
        "TensorFlow",
        "--data.source.data-dir",
    )
    refused(Tfds("mine:9.9.9", data_dir=str(data_dir)), "mine:9.9.9 is not prepared")
    refused(Tfds("mine", data_dir=str(tmp_path / "nowhere")), "is not prepared")
    refused(Tfds(str(tmp_path)), "is not prepared")
    copy = shutil.copytree(folder, tmp_path / "copy")
    for shard in copy.glob("mine-train*"):
        shard.unlink()
    refused(Tfds(str(copy)), "record 0", "can't be read", str(copy))
    info = copy / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    refused(
        Tfds(str(copy)), "prepared as tfrecord", f"tfds convert_format --dataset_version_dir={copy}"
    )
    for name in ("mine", "Mine!", ""):
        with pytest.raises(ConfigError, match=r"choose another name|lower-case"):
            sources.prepare_tfds(Text(), data_dir, name)


def test_importing_the_module_imports_no_library():
    code = (
        "import sys, gptjax.data.documents.sources; sys.exit(bool({'tensorflow_datasets',"
        " 'tensorflow', 'sentencepiece', 'pyarrow', 'charset_normalizer'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False
        ).returncode
        == 0
    )
