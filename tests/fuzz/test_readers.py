"""Mutated raw files through convert: every row accounted for or a sentence, strict outputs, little memory, no hang.

`python -m pytest -m slow tests/fuzz --seed 7` tries other files than the fixed seeds do.
"""

import gzip
import io
import json
import random
import string
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glm2core.data.convert import REJECTED_FILE, convert_sources
from glm2core.data.converted import read_conversations
from glm2core.errors import UserError
from glm2core.params import ConvertParams
from tests.fuzz.harness import ends_within, peak_mib, refused, run_fuzzer

FILES = 1500
SECONDS = 60  # for one file
MOST_MIB = 1024
PIECES = [
    "word ",
    "é",
    "\0",
    "\ud800",
    "\udc80",
    "\U0001f600",
    "\r\n",
    "\r",
    "\x1b[31m",
    "\u2028",
    "\x85",
    '"',
    "\\",
    "[",
    "}",
    ",",
    ";",
    "\t",
    "\ufeff",
    "\u3000",
    "<s>",
]
ENCODINGS = ["utf-8"] * 15 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "cp1252"]
NUMBERS = ["1" * 5000, "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "-0", "18446744073709551616"]
DAMAGE = [b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b'"', b"[" * 60, b"{" * 60, b"\xef\xbb\xbf", b"9" * 5000, b","]


class Maker:
    """Files of every layout, most of them damaged, from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def file(self) -> tuple[str, bytes]:
        """(suffix, content) of one file."""
        make: Callable[[], tuple[str, bytes]] = self.rng.choice(
            [self.array, self.lines, self.objects, self.wrapped, self.csv, self.parquet]
        )
        suffix, content = make()
        if self.rng.random() < 0.3:
            content = self.damaged(content, tail=suffix == ".parquet" and self.rng.random() < 0.7)
        if self.rng.random() < 0.1:
            content = gzip.compress(content)
            if self.rng.random() < 0.5:
                content = self.damaged(content)
        return suffix, content

    def array(self) -> tuple[str, bytes]:
        text = self.rng.choice([",", ",\n", " , "]).join(self.texts())
        return ".json", self.encoded("[" + text + self.rng.choice(["]", "]", "]\n", "", ",]", "]]"]))

    def lines(self) -> tuple[str, bytes]:
        return self.rng.choice([".jsonl", ".json"]), self.encoded(
            self.rng.choice(["\n", "\n", "\r\n", "\n\n", ",\n"]).join(self.texts())
        )

    def objects(self) -> tuple[str, bytes]:
        return ".json", self.encoded("\n".join(json.dumps(row, indent=1) for row in self.rows()))

    def wrapped(self) -> tuple[str, bytes]:
        around: dict[str, Any] = {"version": self.value(), "data": self.rows()}
        if self.rng.random() < 0.3:
            around["more"] = self.value()
        return ".json", self.encoded(json.dumps(around, indent=self.rng.choice([None, 1])))

    def csv(self) -> tuple[str, bytes]:
        delimiter = self.rng.choice([",", ",", ";", "\t", ", "])
        rows = [self.good(0, "alpaca") for _ in range(self.rng.randint(1, 20))]
        cells = [[value + self.text(2) if self.rng.random() < 0.2 else value for value in row.values()] for row in rows]
        quoted = [['"' + c.replace('"', '""') + '"' if self.rng.random() < 0.8 else c for c in row] for row in cells]
        header = [*rows[0], *(["instruction"] if self.rng.random() < 0.1 else [])]
        return self.rng.choice([".csv", ".CSV", ".txt"]), self.encoded(
            self.rng.choice(["\n", "\r\n", "\r"]).join(delimiter.join(row) for row in [header, *quoted])
        )

    def parquet(self) -> tuple[str, bytes]:
        rows = [self.good(i, "alpaca") for i in range(self.rng.randint(1, 30))]
        table = pa.Table.from_pylist(rows)
        numbers = [self.rng.choice([0, 1, 2**40, -(2**52), None]) for _ in rows]
        unit = self.rng.choice(["s", "ms", "ns"])
        others = [
            pa.array(numbers, pa.timestamp(unit)),
            pa.array(numbers, pa.duration(unit)),
            pa.array([float("nan")] * len(rows)),
            pa.array([b"\xff"] * len(rows)).view(pa.string()),
            pa.array([[n] for n in numbers], pa.list_(pa.timestamp(unit))),
            pa.array([{"a": None}] * len(rows)),
        ]
        name = self.rng.choice(["when", "input", "history", "system", "tools", "output"])
        if name in table.column_names:
            table = table.drop_columns([name])
        sink = io.BytesIO()
        pq.write_table(
            table.append_column(name, self.rng.choice(others)),
            sink,
            row_group_size=self.rng.choice([1, 5, 1000]),
            compression=self.rng.choice(["snappy", "zstd", "none"]),
        )
        return ".parquet", sink.getvalue()

    def rows(self) -> list[Any]:
        layout = self.rng.choice(["alpaca", "chatglm", "messages", "sharegpt"])
        good = [self.good(i, layout) for i in range(self.rng.randint(1, 25))]
        rows: list[Any] = list(good)
        for _ in range(self.rng.randint(0, 6)):
            row = {
                key: self.value() if self.rng.random() < 0.5 else kept for key, kept in self.rng.choice(good).items()
            }
            row[self.rng.choice(["tools", "system", "history", "input", "id", self.text(2)])] = self.value()
            rows.insert(self.rng.randint(1, len(rows)), row if self.rng.random() < 0.8 else self.value())
        return rows

    def good(self, number: int, layout: str) -> dict[str, Any]:
        question, answer = f"question {number}", f"answer {number}"
        match layout:
            case "alpaca":
                return {"instruction": question, "input": "x" * self.rng.randint(0, 5), "output": answer}
            case "chatglm":
                return {"prompt": question, "response": answer, "history": [["a", "b"]] * self.rng.randint(0, 2)}
            case "messages":
                return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            case _:
                return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}

    def value(self, depth: int = 0) -> Any:
        kind = self.rng.random()
        if kind < 0.2:
            return self.rng.choice([None, True, 0, -1.5, 10**400, float("nan"), float("inf"), [], {}])
        if kind < 0.7 or depth > 3:
            return self.text()
        if kind < 0.85:
            return [self.value(depth + 1) for _ in range(self.rng.randint(0, 4))]
        return {self.text(2): self.value(depth + 1) for _ in range(self.rng.randint(0, 4))}

    def text(self, most: int = 6) -> str:
        return "".join(self.rng.choice(PIECES + list(string.ascii_letters)) for _ in range(self.rng.randint(0, most)))

    def texts(self) -> list[str]:
        return [self.spoilt(json.dumps(row, ensure_ascii=self.rng.random() < 0.5)) for row in self.rows()]

    def spoilt(self, text: str) -> str:
        match self.rng.randint(0, 30):
            case 0:
                return text.replace('"', "'")
            case 1:
                return text.replace(":", ":" + self.rng.choice(NUMBERS) + ',"z":', 1)
            case 2 if text.endswith("}"):
                depth = self.rng.choice([10, 990, 100_000])
                return text[:-1] + ',"d":' + "[" * depth + "]" * self.rng.choice([depth, depth - 1]) + "}"
            case 3:
                return text[: self.rng.randint(1, len(text))]
            case _:
                return text

    def encoded(self, text: str) -> bytes:
        return text.encode(encoding := self.rng.choice(ENCODINGS), "surrogatepass" if "utf" in encoding else "replace")

    def damaged(self, content: bytes, *, tail: bool = False) -> bytes:
        """Flipped, deleted, inserted or cut bytes; of a parquet file rather in its footer."""
        data = bytearray(content)
        for _ in range(self.rng.choice([1, 1, 2, 5, 30])):
            if not data:
                break
            place = self.rng.randrange(max(0, len(data) - 500) if tail else 0, len(data))
            match self.rng.randint(0, 3):
                case 0:
                    data[place] ^= 1 << self.rng.randrange(8)
                case 1:
                    del data[place : place + self.rng.randint(1, 20)]
                case 2:
                    data[place:place] = self.rng.choice(DAMAGE)
                case _:
                    data = data[:place] if self.rng.random() < 0.1 else data
        return bytes(data)


def check(path: Path, out: Path, rng: random.Random) -> str:
    """Convert one file; returns `converted` or `refused`. Anything else is a fault."""
    source: dict[str, Any] = {"path": str(path), "format": rng.choice(["auto"] * 9 + ["alpaca", "sharegpt"])}
    if rng.random() < 0.1:
        source["limit"] = rng.randint(1, 5)
    if rng.random() < 0.05:
        source["encoding"] = "gb18030"
    most = rng.choice([1.0, 1.0, 1.0, 1.0, 0.05])
    params = ConvertParams.model_validate({"sources": [source], "max_rejected_fraction": most})
    try:
        report = convert_sources(params, out)
    except UserError as error:
        return refused(error, 8000)
    total = report.total
    assert total.read == total.kept + total.rejected + total.duplicates + total.not_taken
    splits = [list(read_conversations(out / f"{split}.parquet")) for split in ("train", "validation", "test")]
    assert sum(map(len, splits)) == total.kept
    lines = (out / REJECTED_FILE).read_bytes().split(b"\n")[:-1]
    assert len(lines) == total.rejected
    for line in lines:
        assert json.dumps(line.decode("utf-8"))
        if line.count(b"[") < 500:  # what is nested deeper is written in a thread of its own
            json.loads(line, parse_constant=refuse_constant)
    return "converted"


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def fuzz(seed: int, count: int, folder: Path) -> None:
    """Try `count` files and print what became of them; the first fault's file stays in the folder."""
    maker, tally = Maker(seed), Counter[str]()
    for number in range(count):
        suffix, content = maker.file()
        path = folder / f"{seed}-{number}{suffix}"
        path.write_bytes(content)
        with ends_within(SECONDS):
            tally[check(path, folder / "out", maker.rng)] += 1
        path.unlink()
    print(json.dumps({**tally, "peak_mib": peak_mib()}))


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(6))
def test_mutated_files_are_converted_or_refused(tmp_path: Path, nth: int, request: pytest.FixtureRequest) -> None:
    found = run_fuzzer("test_readers", nth, FILES, tmp_path, request)
    assert found["converted"] > FILES // 5 and found["refused"] > FILES // 20
    assert found["peak_mib"] < MOST_MIB


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
