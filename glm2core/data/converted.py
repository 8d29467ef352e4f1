"""Defines the schema of the parquet files that hold converted rows, and writes and reads these files."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glm2core.conversation import SPLITS, Conversation, Message
from glm2core.errors import UserError
from glm2core.params import Source
from glm2core.parquet import damage_told, open_parquet, parquet_writer

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), nullable=False),
        pa.field("question_chars", pa.int32()),
        pa.field("max_source_length", pa.int32()),
        pa.field("max_target_length", pa.int32()),
        pa.field("loss_on", pa.string()),
        pa.field("weight", pa.float32()),
        pa.field("kind", pa.string()),  # only for generated rows
    ]
)
_ROW_GROUP_ROWS = 8192
_ROW_GROUP_CHARS = 1 << 23  # this also limits what a reader keeps in memory at once


class ConvertedWriter:
    """Collects rows and writes them to one file per split, one row group at a time."""

    def __init__(self, folder: Path) -> None:
        self._files = ExitStack()
        self._splits = {
            split: _SplitWriter(self._files.enter_context(parquet_writer(folder / f"{split}.parquet", SCHEMA)))
            for split in SPLITS
        }

    def add(
        self,
        split: str,
        row_id: str,
        source_name: str,
        conversation: Conversation,
        source: Source,
        kind: str | None = None,
    ) -> None:
        self._splits[split].add(
            row_id,
            source_name,
            conversation,
            source.max_source_length,
            source.max_target_length,
            source.loss_on or ("every" if source.is_generated else None),
            None if source.weight == 1 else source.weight,
            kind,
        )

    def __enter__(self) -> "ConvertedWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._files:
            if error is None:
                for writer in self._splits.values():
                    writer.flush()


class _SplitWriter:
    def __init__(self, file: pq.ParquetWriter) -> None:
        self._file = file
        self._clear()

    def add(self, row_id: str, source: str, conversation: Conversation, *settings: float | str | None) -> None:
        self._ids.append(row_id)
        self._sources.append(source)
        self._question_chars.append(conversation.question_chars)
        self._settings.append(settings)
        for message in conversation.messages:
            self._roles.append(message["role"])
            self._contents.append(message["content"])
            self._chars += len(message["content"])
        self._ends.append(len(self._roles))
        if len(self._ids) == _ROW_GROUP_ROWS or self._chars >= _ROW_GROUP_CHARS:
            self.flush()

    def _clear(self) -> None:
        self._ids: list[str] = []
        self._sources: list[str] = []
        self._question_chars: list[int | None] = []
        self._settings: list[tuple[float | str | None, ...]] = []
        self._roles: list[str] = []
        self._contents: list[str] = []
        self._ends: list[int] = [0]
        self._chars = 0

    def flush(self) -> None:
        if not self._ids:
            return
        structs = pa.StructArray.from_arrays(
            [pa.array(self._roles, pa.string()), pa.array(self._contents, pa.string())], names=["role", "content"]
        )
        messages = pa.ListArray.from_arrays(pa.array(self._ends, pa.int32()), structs)
        settings = zip(*self._settings, strict=True)
        columns = [self._ids, self._sources, messages, self._question_chars, *settings]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self._clear()


class ConvertedBatch:
    """A batch of rows from a converted file, stored as columns.

    Args:
        batch: a record batch with the schema `SCHEMA`.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        messages = batch.column("messages")
        ends = np.asarray(messages.offsets)
        values = messages.values.slice(ends[0], ends[-1] - ends[0])  # a batch may be a slice of a larger one
        self._ends: list[int] = (ends - ends[0]).tolist()
        self._roles: list[str] = values.field("role").to_pylist()
        self._contents: list[str] = values.field("content").to_pylist()
        self.ids = batch.column("id")
        self.sources = batch.column("source")
        self.weights = batch.column("weight")
        self.question_chars: list[int | None] = batch.column("question_chars").to_pylist()
        self.max_source_length: list[int | None] = batch.column("max_source_length").to_pylist()
        self.max_target_length: list[int | None] = batch.column("max_target_length").to_pylist()
        self.loss_on: list[Any] = batch.column("loss_on").to_pylist()

    def __len__(self) -> int:
        return len(self.question_chars)

    def conversation(self, row: int) -> Conversation:
        start, end = self._ends[row], self._ends[row + 1]
        pairs = zip(self._roles[start:end], self._contents[start:end], strict=True)
        messages: list[Message] = [{"role": role, "content": content} for role, content in pairs]
        return Conversation(messages, self.question_chars[row])


def count_rows(path: Path) -> int:
    """Number of rows in a converted file, as recorded in its footer."""
    with open_parquet(path, "convert") as file:
        return int(file.metadata.num_rows)


def read_converted(path: Path) -> Iterator[ConvertedBatch]:
    """Read a converted file one row group at a time, so that at most 8,192 rows are in memory at once.

    Raises:
        UserError: the file is missing, is damaged, or was not written by this version's convert stage.
    """
    if not path.exists():
        raise UserError(f"{path} is missing. Run the convert stage first: dvc repro convert.")
    with open_parquet(path, "convert") as file:
        if file.schema_arrow.names != SCHEMA.names:
            raise UserError(f"{path} was not written by this version's convert stage. Run dvc repro convert.")
        for group in range(file.num_row_groups):
            with damage_told(path, "convert"):
                batches = [ConvertedBatch(batch) for batch in file.read_row_group(group).to_batches()]
            yield from batches


def read_conversations(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a converted file's rows as dicts with the keys `id`, `source`, `messages` and `question_chars`."""
    for batch in read_converted(path):
        for row in range(len(batch)):
            conversation = batch.conversation(row)
            yield {
                "id": batch.ids[row].as_py(),
                "source": batch.sources[row].as_py(),
                "messages": conversation.messages,
                "question_chars": conversation.question_chars,
            }
