"""Raw files that tests write, and what convert makes of them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from glm2core.data.convert import ConvertReport, convert_sources
from glm2core.data.converted import read_conversations
from glm2core.data.fates import FATES_FILE
from glm2core.params import ConvertParams, Source

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(30)]


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def convert(path: Path, out: Path, **settings: object) -> ConvertReport:
    source = Source.model_validate({"path": str(path), **settings})
    params = ConvertParams(sources=[source], validation_fraction=0, test_fraction=0, max_rejected_fraction=0.5)
    return convert_sources(params, out)


def reasons(out: Path) -> list[str]:
    """Why rows were rejected, each reason once, in order."""
    fates = pq.read_table(out / FATES_FILE).to_pylist()
    return list(dict.fromkeys(row["reason"] for row in fates if row["fate"] == "rejected"))


def said(out: Path) -> list[list[str]]:
    return [
        [f"{m['role'][0]}:{m['content']}" for m in row["messages"]] for row in read_conversations(out / "train.parquet")
    ]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()
