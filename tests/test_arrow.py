"""Arrow files and the data sets that Hugging Face's `datasets` saves, read without that library."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_sources import write_parquet

from gptjax.core.config import ConfigError
from gptjax.data import Conversations, Records, Text
from gptjax.data.documents.sources import read_documents
from gptjax.data.documents.structured import read_objects


def save_dataset(folder: Path, columns: dict, shards: int = 2) -> None:
    """What `datasets.Dataset.from_dict(columns).save_to_disk(folder, num_shards=shards)` writes."""
    import pyarrow as pa

    folder.mkdir(parents=True)
    table, names = pa.table(columns), []
    size = -(-table.num_rows // shards)
    for shard in range(shards):
        names.append(f"data-{shard:05d}-of-{shards:05d}.arrow")
        part = table.slice(shard * size, size)
        with pa.ipc.new_stream(folder / names[-1], table.schema) as stream:
            for batch in part.to_batches(max_chunksize=2):
                stream.write_batch(batch)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state | {"_split": "train"}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def test_a_saved_data_set_reads_as_its_rows_without_the_library(tmp_path):
    texts = [f"text {n}\nof lines" for n in range(7)]
    save_dataset(tmp_path / "set", {"text": texts, "label": [n % 2 for n in range(7)]}, shards=3)
    write_parquet(tmp_path / "a.parquet", {"text": texts})
    found = list(read_documents(Text(str(tmp_path / "set"))))
    assert [one.text for one in found] == texts
    assert [one.text for one in read_documents(Text(str(tmp_path / "a.parquet")))] == texts
    assert found[3].name == "data-00001-of-00003.arrow:1", "the first of the second file"
    pairs = list(read_documents(Records(str(tmp_path / "set"), source="text", target="label")))
    assert [(one.source, one.text) for one in pairs] == [
        (t, str(n % 2)) for n, t in enumerate(texts)
    ]
    with pytest.raises(ConfigError, match=r"has no column 'txt' .* Did you mean 'text'\?"):
        list(read_documents(Text(str(tmp_path / "set"), field="txt")))


def test_conversations_of_columns_are_those_of_json(tmp_path):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    lines = [{"messages": talk}, {"prompt": "1+1=", "completion": "2"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {name: [line.get(name) for line in lines] for name in ("messages", "prompt")}
    columns["completion"] = [None, "2"]
    save_dataset(tmp_path / "set", columns, shards=1)
    write_parquet(tmp_path / "a.parquet", columns)
    rows = read_objects(tmp_path / "a.parquet", "parquet", "utf-8")
    assert [(row, defect) for _, row, defect in rows] == [(line, "") for line in lines]
    known = read_documents(Conversations(str(tmp_path / "a.jsonl")))
    wanted = [(document.text, document.source) for document in known]
    assert len(wanted) == 2
    for name in ("set", "a.parquet"):
        found = read_documents(Conversations(str(tmp_path / name)))
        assert [(d.text, d.source) for d in found] == wanted


def test_what_is_wrong_with_a_saved_data_set_is_said_in_a_line(tmp_path, monkeypatch):
    save_dataset(tmp_path / "all/train", {"text": ["a", "b"]})
    (tmp_path / "all/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    cases = {"holds the splits train, test; give one of them: .*all/train": tmp_path / "all"}
    save_dataset(tmp_path / "cut", {"text": ["a" * 99, "b"]}, shards=1)
    file = tmp_path / "cut/data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-120])
    cases["can't be read as Arrow"] = tmp_path / "cut"
    save_dataset(tmp_path / "away", {"text": ["a"]}, shards=1)
    state = '{"_data_files": [{"filename": "../cut/data-00000-of-00001.arrow"}]}'
    (tmp_path / "away/state.json").write_text(state)
    cases["does not name the files of a data set"] = tmp_path / "away"
    for said, folder in cases.items():
        with pytest.raises(ConfigError, match=said):
            list(read_documents(Text(str(folder))))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="needs pyarrow"):
        list(read_documents(Text(str(tmp_path / "all/train"))))
