"""Files made to take much memory or time: each row and each file has a bound."""

import gzip
import lzma
import os
import subprocess
import sys
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glm2core.data.sources import open_rows
from glm2core.errors import UserError
from tests.data.raw_files import ROOT, ROWS, convert, lines, reasons, said, write, zstd

OVER_THE_BOUNDS = {
    "LONG": lambda: "x" * (1 << 24),
    "OPEN": lambda: "[[" * 300_000,
    "CLOSE": lambda: "]]" * 300_000,
    "MANY": lambda: "[],{}," * 400_000,
    "LINES": lambda: ("word " * 4000 + '""\n') * 1000,
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"instruction": "LONG", "output": "a"}\n'),
        ("a.json", '{"instruction": "LONG", "output": "a"}'),
        ("a.json", '{"instruction": ["LONG]\\"", [{}, "]"]], "output": "a"}'),
        ("a.json", '{"instruction": OPEN"LONG"CLOSE, "output": "a"}'),
        ("a.json", '{"instruction": [MANY1], "output": "a"}'),
        ("a.jsonl", '{"instruction": [MANY1], "output": "a"}\n'),
        ("a.csv", '"LONG",a\n'),
        ("a.csv", '"LINES",a\n'),
    ],
)
def test_a_row_over_the_bounds_is_rejected_and_reading_goes_on(tmp_path, name, text):
    for word, long in OVER_THE_BOUNDS.items():
        text = text.replace(word, long()) if word in text else text
    good = '{"instruction": "q%d", "output": "a"}'
    match name:
        case "a.json":
            content = "[" + ",".join([good % 1, text, good % 2]) + "]"
        case "a.jsonl":
            content = f"{good % 1}\n{text}{good % 2}\n"
        case _:
            content = f"instruction,output\nq1,a\n{text}q2,a\n"
    convert(write(tmp_path / name, content.encode()), tmp_path / "out")
    assert said(tmp_path / "out") == [["u:q1", "a:a"], ["u:q2", "a:a"]]
    (reason,) = reasons(tmp_path / "out")
    assert reason.startswith(
        ("the row is longer than 16,777,216 characters", "the row holds more than 262,144 lists and objects")
    )
    assert (tmp_path / "out/rejected.jsonl").stat().st_size < 3000


def test_the_cost_of_a_csv_header_is_linear(tmp_path):
    names = ",".join(f"n{i}" for i in range(60_000))
    path = write(tmp_path / "a.csv", f"instruction,output,{names}\nq,a{',' * 60_000}\n".encode())
    assert convert(path, tmp_path / "out").total.kept == 1  # hours where each name is counted anew
    path = write(tmp_path / "b.csv", ("a," * 100_000).encode())
    with pytest.raises(UserError, match="has 100,001 columns; at most 65,536"):
        list(open_rows(path))


MIB = 1 << 20
GOOD = b'{"instruction": "q", "output": "a"}'
BOMBS = {
    "a line": lambda: GOOD + b"\n" + b"x" * 300 * MIB + b"\n",
    "a line of wide characters": lambda: GOOD + b"\n" + "\U0001f600".encode() * 60 * MIB,
    "an element": lambda: b"[" + GOOD + b', {"a": "' + b"x" * 300 * MIB + b'"}]',
    "lists in an element": lambda: b"[" + GOOD + b", [" + b"[]," * 60 * MIB + b"1]]",
    "keys in an element": lambda: b"[" + GOOD + b"," + b'{"":' * 20 * MIB + b"1" + b"}" * 20 * MIB + b"]",
    "numbers in lines": lambda: GOOD + (b"\n[" + b"1.5," * (4 * MIB - 2) + b"1]") * 4,
    "fields": lambda: b"instruction,output\nq,a\n" + (b"ab," * 5 * MIB + b"\n") * 4,
    "lines of a field": lambda: b'instruction,output\nq,a\n"' + b"a\n" * 100 * MIB + b'",a\n',
    "a header": lambda: b"instruction,output," + b"abc," * 60 * MIB,
}
PEAK = """
import re, sys
from pathlib import Path
from glm2core.data.convert import convert_sources
from glm2core.errors import UserError
from glm2core.params import ConvertParams, Source
from glm2core.text.tokenizer import SpTokenizer
settings = dict(validation_fraction=0, test_fraction=0, max_rejected_fraction=1)
try:
    convert_sources(ConvertParams(sources=[Source(path=sys.argv[1])], **settings), Path(sys.argv[2]))
except UserError as error:
    print(str(error)[:300], file=sys.stderr)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("packed", [gzip.compress, lzma.compress, zstd])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_little_memory(tmp_path, bomb, packed):
    path = write(tmp_path / ("a.csv" if "field" in bomb or "header" in bomb else "a.json"), packed(BOMBS[bomb]()))
    assert path.stat().st_size <= MIB
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=500)
    assert int(done.stdout) < 1024, done.stderr


TEXT = pa.array(["x" * MIB])
PARQUET_BOMBS = {
    "one text for all rows": lambda: pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), TEXT),
    "one text in all lists": lambda: pa.FixedSizeListArray.from_arrays(
        pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), TEXT), 1000
    ),
    "long texts": lambda: pa.array(["x" * 150 * MIB] * 3),
    "nulls in a list": lambda: pa.ListArray.from_arrays(pa.array([0, 120 * MIB], pa.int32()), pa.nulls(120 * MIB)),
    "many lists": lambda: pa.array([[[]] * 10 * MIB], pa.list_(pa.list_(pa.int8()))),
}


@pytest.mark.slow
@pytest.mark.parametrize("column", ["output", "other"])
@pytest.mark.parametrize("bomb", PARQUET_BOMBS)
def test_a_small_parquet_file_takes_little_memory(tmp_path, bomb, column):
    values = PARQUET_BOMBS[bomb]()
    rows = {"instruction": [f"q{i}" for i in range(len(values))], column: values}
    texts = {"use_dictionary": True, "dictionary_pagesize_limit": 1 << 30} if "one text" in bomb else {}
    options = texts or {"use_dictionary": False}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", compression="zstd", **options)
    assert (tmp_path / "a.parquet").stat().st_size <= MIB
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PEAK, str(tmp_path / "a.parquet"), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=500)
    print(bomb, column, done.stdout, done.stderr[-200:])
    assert int(done.stdout) < 1024, done.stderr


def test_an_xz_file_can_not_ask_for_gigabytes(tmp_path):
    packed = bytearray(lzma.compress(lines(ROWS)))
    end = 12 + 4 * (packed[12] + 1)  # the first block's header: filter LZMA2, one byte of properties: the dictionary
    assert packed[14:16] == b"\x21\x01"
    packed[16] = 37  # 1.5 GiB
    packed[end - 4 : end] = zlib.crc32(packed[12 : end - 4]).to_bytes(4, "little")
    with pytest.raises(UserError, match="too much memory to decompress"):
        open_rows(write(tmp_path / "a.json", bytes(packed)))
