"""The tokenized parquet and its arrays: read back as written, refused for another tokenizer, read by others."""

import datasets
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.conversation import Conversation
from glm2core.errors import UserError
from glm2core.labels import IGNORED
from glm2core.text.dataset import TokenizedDataset, TokenizedInfo, TokenizedWriter
from glm2core.text.pairs import Limits, PairBuilder
from tests.text.test_pairs import ANSWERED
from tests.text.test_prompt import chat

INFO = TokenizedInfo("a1" * 32, "chatglm2", "b2" * 32, "glm2")


def write(path, tokenizer, batches):
    """Rows of several batches; returns their ids, labels and segments as lists."""
    builder = PairBuilder(tokenizer, threads=1)
    expected = []
    with TokenizedWriter(path, INFO, tokenizer.newline) as writer:
        for number, conversations in enumerate(batches):
            pairs = builder.build(conversations, [Limits(40, 20, "every")] * len(conversations))
            ids = pa.array([f"{number}-{row}" for row in pairs.rows], pa.string())
            writer.write(ids, pa.array(["a.json"] * len(ids), pa.string()), pairs)
            segments, segment_ends = pairs.segments(tokenizer.newline)
            for i, row in enumerate(pairs.rows):
                tokens = slice(pairs.ends[i], pairs.ends[i + 1])
                lines = slice(segment_ends[i], segment_ends[i + 1])
                columns = (pairs.input_ids[tokens], pairs.labels[tokens], segments[lines])
                expected.append((f"{number}-{row}", *(column.tolist() for column in columns)))
    return expected


@given(batches=st.lists(st.lists(ANSWERED, max_size=4), max_size=3))
def test_reading_gives_what_was_written(tmp_path_factory, tokenizer, batches):
    path = tmp_path_factory.mktemp("dataset") / "train.parquet"
    expected = write(path, tokenizer, batches)
    dataset = TokenizedDataset.load(path)
    got = [(row_id, *(part.tolist() for part in dataset.row(i))) for i, row_id in enumerate(dataset.ids)]
    assert got == expected
    assert len(dataset) == len(expected)
    assert dataset.lengths.tolist() == [len(ids) for _, ids, *_ in expected]
    assert dataset.supervised_tokens == sum(label != IGNORED for *_, labels, _ in expected for label in labels)
    assert dataset.info == INFO


def test_others_read_it(tmp_path, tokenizer):
    path = tmp_path / "train.parquet"
    batches = [[Conversation(chat("问\n题", "回答"))] * 3, [Conversation(chat("a", "b", "c", "d"))]]
    rows = [
        dict(zip(("id", "input_ids", "labels", "segments"), row, strict=True))
        for row in write(path, tokenizer, batches)
    ]
    assert polars.read_parquet(path).select(rows[0].keys()).to_dicts() == rows
    loaded = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.select_columns(list(rows[0])).to_list() == rows
    assert set(loaded["source"]) == {"a.json"}
    file = pq.ParquetFile(path)
    assert [str(file.schema_arrow.field(name).type.value_type) for name in ("input_ids", "labels")] == ["int32"] * 2
    assert (file.num_row_groups, file.metadata.row_group(0).column(1).compression) == (2, "ZSTD")


def test_rows_are_views(tmp_path, tokenizer):
    write(tmp_path / "a.parquet", tokenizer, [[Conversation(chat("a", "b"))] * 2])
    dataset = TokenizedDataset.load(tmp_path / "a.parquet")
    first, again = dataset.row(0)[0], dataset.row(0)[0]
    assert np.shares_memory(first, again)
    assert (first.dtype, dataset.lengths.dtype) == (np.int32, np.int64)
    with pytest.raises(IndexError, match="row 2 of 2"):
        dataset.row(2)


def test_another_tokenizer_and_other_files_are_refused(tmp_path, tokenizer):
    path = tmp_path / "train.parquet"
    write(path, tokenizer, [[Conversation(chat("a", "b"))]])
    assert len(TokenizedDataset.load(path, INFO.tokenizer_sha256)) == 1
    with pytest.raises(UserError, match=r"different tokenizer \(sha256 a1a1a1a1a1a1\).*\(cccccccccccc\).*dvc repro"):
        TokenizedDataset.load(path, "c" * 64)
    with pytest.raises(UserError, match=r"is missing\. Run the tokenize stage first"):
        TokenizedDataset.load(tmp_path / "none.parquet")
    (tmp_path / "half.parquet").write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged or cut-off parquet file"):
        TokenizedDataset.load(tmp_path / "half.parquet")
    pq.write_table(pa.table({"input_ids": [[1]]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="was not written by this version's tokenize stage"):
        TokenizedDataset.load(tmp_path / "other.parquet")
