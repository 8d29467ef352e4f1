"""The whole conversion: every row accounted for, splits that hold still, a parquet that others read."""

import json
import sys
from pathlib import Path

import datasets
import polars
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.conversation import SPLITS, RejectionError, identify, split_of
from glm2core.data.convert import convert_sources
from glm2core.data.converted import read_conversations
from glm2core.data.reports import convert_metrics
from glm2core.errors import UserError
from glm2core.params import ConvertParams, GeneratedAnalysis, GeneratedLines, Source
from tests.text.conftest import NOT_BLANK

GOOD = [{"instruction": f"question {i}", "input": "", "output": f"answer {i}"} for i in range(40)]


def write_rows(path: Path, rows: list) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(path=str(path))


def params(*sources: Source, **settings) -> ConvertParams:
    return ConvertParams(sources=list(sources), **settings)


def converted(folder: Path) -> dict[str, list[dict]]:
    return {split: list(read_conversations(folder / f"{split}.parquet")) for split in SPLITS}


def test_every_row_is_accounted_for(tmp_path):
    dirty = [*GOOD, GOOD[3], {"instruction": "no answer"}, {"instruction": "x", "output": "\ud800"}, ["not a row"]]
    source = write_rows(tmp_path / "a.jsonl", dirty)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"instruction": "cut')
    report = convert_sources(params(source, max_rejected_fraction=0.2), tmp_path / "out")
    assert vars(report.total) == {"read": 45, "kept": 40, "rejected": 4, "duplicates": 1, "not_taken": 0}
    assert sum(map(len, converted(tmp_path / "out").values())) == 40
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text("utf-8").splitlines()]
    name = str(tmp_path / "a.jsonl")
    assert rejected == [
        {"source": name, "line": 42, "reason": "output is missing", "row": {"instruction": "no answer"}},
        {
            "source": name,
            "line": 43,
            "reason": "a lone surrogate (half of a character)",
            "row": {"instruction": "x", "output": "\ud800"},
        },
        {"source": name, "line": 44, "reason": "the row is a list, not an object", "row": ["not a row"]},
        {
            "source": name,
            "line": 45,
            "reason": "not valid JSON: Unterminated string starting at",
            "row": '{"instruction": "cut',
        },
    ]
    fates = polars.read_parquet(tmp_path / "out/fates.parquet")
    assert fates["number"].to_list() == list(range(1, 46))
    assert fates["fate"].to_list() == ["kept"] * 40 + ["duplicate"] + ["rejected"] * 4
    assert fates["reason"].to_list() == [None] * 41 + [row["reason"] for row in rejected]


def test_a_rejected_row_is_kept_whole_unless_it_is_too_deep_to_write(tmp_path):
    """Around the depth where reading stops, every row is there with its place: whole, shortened, or as text."""
    limit = sys.getrecursionlimit()
    deep = [{"instruction": "[" * depth + "]" * depth, "output": "x"} for depth in range(limit // 2, limit)]
    rows = [json.dumps(row).replace('"[', "[").replace(']"', "]") for row in deep]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*map(json.dumps, GOOD), *rows]) + "\n")
    report = convert_sources(params(Source(path=str(path)), max_rejected_fraction=1.0), tmp_path / "out")
    assert report.total.rejected == len(rows)
    reasons = polars.read_parquet(tmp_path / "out/fates.parquet")["reason"].drop_nulls()
    assert set(reasons) == {"instruction is a list, not a text", "nested too deeply"}
    kept = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    for place, (row, line) in enumerate(zip(rows, kept, strict=True), len(GOOD) + 1):
        whole = line.count("[") == row.count("[")
        shortened = "[[...]]" in line and len(line) < 300
        assert f'"line": {place}, ' in line and whole != shortened, place


def test_too_many_rejected_rows_stop_with_the_first_reasons(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [*GOOD, *[{"instruction": "x", "output": ""}] * 3])
    with pytest.raises(UserError, match=r"3 of 43 rows in files were rejected(.|\n)*a.jsonl, line 41: output is empty"):
        convert_sources(params(source), tmp_path / "out")


def test_generated_rows_do_not_hide_how_many_are_rejected(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [*GOOD[:8], *[{"instruction": "x", "output": ""}] * 2])
    generated = Source(format="lines", generate=GeneratedLines(conversations=200, lines=[2], questions=1))
    analyses = [Source(format="analysis", analysis=GeneratedAnalysis(rows=9, held_out_rows=2, seed=s)) for s in (1, 2)]
    with pytest.raises(UserError, match="2 of 10 rows in files were rejected"):
        convert_sources(params(source, generated, *analyses), tmp_path / "out")
    report = convert_sources(params(source, generated, max_rejected_fraction=0.2), tmp_path / "out")
    assert convert_metrics(report)["rejected_fraction"] == 0.2


def test_no_row_left_is_an_error(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [{"instruction": "x", "output": ""}])
    with pytest.raises(UserError, match="no row is left to train on: of 1 rows, 1 were rejected"):
        convert_sources(params(source, max_rejected_fraction=1.0), tmp_path / "out")


def test_limits_over_several_files_of_a_glob(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"instruction": "x", "output": ""}, *GOOD[:10]])
    write_rows(tmp_path / "b.jsonl", GOOD)
    source = Source(path=str(tmp_path / "*.jsonl"), limit=15, max_source_length=7, max_target_length=9, loss_on="every")
    report = convert_sources(params(source, max_rejected_fraction=0.5), tmp_path / "out")
    assert vars(report.total) == {"read": 51, "kept": 15, "rejected": 1, "duplicates": 10, "not_taken": 25}
    table = pq.read_table(tmp_path / "out/train.parquet")
    for name, value in (("max_source_length", 7), ("max_target_length", 9), ("loss_on", "every")):
        assert set(table[name].to_pylist()) == {value}


def test_a_file_named_twice_is_counted_twice(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", GOOD)
    report = convert_sources(params(source, source), tmp_path / "out")
    assert vars(report.total) == {"read": 80, "kept": 40, "rejected": 0, "duplicates": 40, "not_taken": 0}
    assert [vars(tally) for tally in report.by_source.values()] == [vars(report.total)]


def test_formats_are_detected_and_said(tmp_path):
    sources = [
        write_rows(tmp_path / "a.jsonl", GOOD),
        write_rows(tmp_path / "c.jsonl", [5, {"prompt": "p", "response": "r", "history": ["t"]}]),
        write_rows(
            tmp_path / "m.jsonl",
            [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}],
        ),
    ]
    report = convert_sources(params(*sources), tmp_path / "out")
    assert list(report.formats.values()) == ["alpaca (JSON lines)", "chatglm (JSON lines)", "messages (JSON lines)"]
    assert len(report.untracked) == 3


@pytest.mark.parametrize(
    ("settings", "rows", "sentence"),
    [
        (
            {"format": "alpaca"},
            [{"prompt": "p", "response": "r"}],
            "alpaca format needs instruction and output, .*chatglm",
        ),
        (
            {},
            [{"question": "p", "answer": "r"}],
            r"can't detect the format of .* from its columns \(question, answer\)",
        ),
        ({"format": "chatglm", "columns": {"promt": "q"}}, [{"q": "p", "response": "r"}], "promt is not a column of"),
        ({}, [], "is empty"),
        ({}, [{}], r"can't detect the format of .* from its columns \(none\)"),
        ({}, [5, "x"], "line 1: the row is a number, not an object"),
    ],
)
def test_wrong_formats_and_columns_are_sentences(tmp_path, settings, rows, sentence):
    path = write_rows(tmp_path / "a.jsonl", rows).path
    with pytest.raises(UserError, match=sentence):
        convert_sources(params(Source(path=path, **settings)), tmp_path / "out")


def test_a_csv_without_a_column_is_a_sentence(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,answer\nq,a\n")
    with pytest.raises(UserError, match="needs output, but its columns are instruction, answer"):
        convert_sources(params(Source(path=str(tmp_path / "a.csv"))), tmp_path / "out")
    mapped = Source(path=str(tmp_path / "a.csv"), columns={"output": "answer"})
    settings = {"validation_fraction": 0.0, "test_fraction": 0.0}
    assert convert_sources(params(mapped, **settings), tmp_path / "out").total.kept == 1


def test_generated_lines_are_supervised_on_every_answer(tmp_path):
    generate = GeneratedLines(conversations=12, lines=[5, 9], questions=3)
    report = convert_sources(params(Source(format="lines", generate=generate, max_source_length=900)), tmp_path / "out")
    assert report.total.kept == 12
    table = pq.read_table(tmp_path / "out/train.parquet")
    assert set(table["loss_on"].to_pylist()) == {"every"}
    assert {len(messages) for messages in table["messages"].to_pylist()} == {6}


def test_a_row_keeps_its_split_and_equal_prompts_share_one(tmp_path):
    prompts = [{"instruction": f"q{i % 60}", "output": f"a{i}"} for i in range(300)]
    some, all_of_them = write_rows(tmp_path / "a.jsonl", prompts[:150]), write_rows(tmp_path / "b.jsonl", prompts[::-1])
    settings = {"validation_fraction": 0.3, "test_fraction": 0.2}
    convert_sources(params(some, **settings), tmp_path / "some")
    convert_sources(params(all_of_them, **settings), tmp_path / "all")
    before = {row["id"]: split for split, rows in converted(tmp_path / "some").items() for row in rows}
    after = {row["id"]: split for split, rows in converted(tmp_path / "all").items() for row in rows}
    assert len(before) == 150
    assert before.items() <= after.items()
    homes: dict[str, set[str]] = {}
    for split, rows in converted(tmp_path / "all").items():
        for row in rows:
            homes.setdefault(row["messages"][0]["content"], set()).add(split)
    assert len(homes) == 60
    assert all(len(home) == 1 for home in homes.values())
    assert len(set(after.values())) == 3


def test_shares_of_the_splits_and_the_seed():
    points = [
        identify([{"role": "user", "content": str(i)}, {"role": "assistant", "content": ""}], 0) for i in range(4000)
    ]
    splits = [split_of(point.split_point, 0.2, 0.1) for point in points]
    assert splits.count("validation") == pytest.approx(800, rel=0.1)
    assert splits.count("test") == pytest.approx(400, rel=0.15)
    other = [
        identify([{"role": "user", "content": str(i)}, {"role": "assistant", "content": ""}], 1) for i in range(4000)
    ]
    assert [point.id for point in other] == [point.id for point in points]
    assert [split_of(point.split_point, 0.2, 0.1) for point in other] != splits


def test_a_lone_surrogate_and_a_wrong_byte_have_no_identity():
    for character, reason in (("\ud83d", "a lone surrogate"), ("\udcc4", "bytes that are invalid in its encoding")):
        with pytest.raises(RejectionError, match=reason):
            identify([{"role": "user", "content": "q"}, {"role": "assistant", "content": character}], 0)


@given(rows=st.lists(st.tuples(NOT_BLANK, NOT_BLANK), min_size=1, max_size=12))
def test_what_is_read_back_is_what_was_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("convert")
    source = write_rows(folder / "a.jsonl", [{"prompt": p, "response": r, "history": []} for p, r in rows])
    settings = {"validation_fraction": 0.0, "test_fraction": 0.0}
    convert_sources(params(source, **settings), folder / "out")
    expected = dict.fromkeys((p.replace("\r\n", "\n"), r.replace("\r\n", "\n")) for p, r in rows)
    got = [tuple(m["content"] for m in row["messages"]) for row in converted(folder / "out")["train"]]
    assert got == list(expected)


def test_others_read_the_parquet_and_the_bytes_are_the_same(tmp_path, alpaca_files):
    sources = params(*[Source(path=str(file)) for file in alpaca_files])
    report = convert_sources(sources, tmp_path / "one")
    convert_sources(sources, tmp_path / "two")
    for name in [*(f"{split}.parquet" for split in SPLITS), "fates.parquet", "rejected.jsonl"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (report.total.read, report.total.rejected) == (1999, 0)
    # 14 English and 8 Chinese rows are there twice
    assert (report.total.kept, report.total.duplicates) == (1977, 22)

    file = str(tmp_path / "one/train.parquet")
    rows = list(read_conversations(Path(file)))
    assert polars.read_parquet(file)["messages"].to_list() == [row["messages"] for row in rows]
    loaded = datasets.load_dataset("parquet", data_files=file, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded[:]["messages"] == [row["messages"] for row in rows]
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


@pytest.mark.parametrize("held_out", [True, False])
def test_a_source_may_hold_nothing_out(tmp_path, held_out):
    generate = GeneratedLines(conversations=60, lines=[2], questions=1)
    source = Source(format="lines", generate=generate, held_out=held_out)
    report = convert_sources(params(source, validation_fraction=0.3, test_fraction=0.3), tmp_path / "out")
    assert report.total.kept == 60
    assert (report.by_split["train"] == 60) is not held_out


@pytest.mark.parametrize("held_out", [True, False])
def test_generated_analysis_knows_its_splits_and_kinds(tmp_path, held_out):
    source = Source(format="analysis", analysis=GeneratedAnalysis(rows=80, held_out_rows=120), held_out=held_out)
    report = convert_sources(params(source, validation_fraction=0.9), tmp_path / "out")
    assert dict(report.by_split) == {"train": 80, **({"validation": 60, "test": 60} if held_out else {})}
    tables = [pq.read_table(tmp_path / f"out/{split}.parquet").to_pylist() for split in SPLITS]
    kinds = {"extract", "texts", "tasks", "judgement", "dialogue"}
    assert [{row["kind"] for row in rows} for rows in tables] == [kinds, *([kinds] * 2 if held_out else [set()] * 2)]
    assert {row["source"] for rows in tables for row in rows} == {"analysis"}
    assert {row["loss_on"] for rows in tables for row in rows} == {"every"}


def test_no_generated_rows_are_neither_a_fault_nor_a_source(tmp_path):
    source = Source(format="analysis", analysis=GeneratedAnalysis(rows=0, held_out_rows=0))
    report = convert_sources(params(write_rows(tmp_path / "a.jsonl", GOOD), source), tmp_path / "out")
    assert list(report.by_source) == [str(tmp_path / "a.jsonl")]
    assert report.total.kept == 40


def test_a_sources_weight_goes_with_its_rows(tmp_path):
    light = write_rows(tmp_path / "a.jsonl", GOOD).model_copy(update={"weight": 0.25})
    plain = write_rows(tmp_path / "b.jsonl", [{"instruction": "x", "output": "y"}])
    convert_sources(params(light, plain, validation_fraction=0.0, test_fraction=0.0), tmp_path / "out")
    assert pq.read_table(tmp_path / "out/train.parquet")["weight"].to_pylist() == [0.25] * 40 + [None]


def write_parts(folder: Path, sizes: list[int]) -> None:
    """Parts as Spark leaves them, with its marks beside them."""
    folder.mkdir()
    start = 0
    for number, size in enumerate(sizes):
        rows = GOOD[start : start + size]
        schema = dict.fromkeys(GOOD[0], polars.String)
        polars.DataFrame(rows, schema).write_parquet(folder / f"part-{number:05}-c000.snappy.parquet")
        start += size
    (folder / "_SUCCESS").touch()
    (folder / "._SUCCESS.crc").touch()
    (folder / "._part.parquet").touch()


def test_a_folder_of_parquet_parts_is_one_source(tmp_path):
    write_parts(tmp_path / "parts", [15, 0, 20, 5])
    whole = write_rows(tmp_path / "whole.jsonl", GOOD)
    for name, source in {"parts": Source(path=str(tmp_path / "parts"), limit=37), "whole": whole}.items():
        report = convert_sources(params(source, validation_fraction=0.0, test_fraction=0.0), tmp_path / "out" / name)
        assert list(report.by_source) == [str(tmp_path / name) + (".jsonl" if name == "whole" else "")]
    of_parts, of_whole = (converted(tmp_path / "out" / name)["train"] for name in ("parts", "whole"))
    assert [row["id"] for row in of_parts] == [row["id"] for row in of_whole][:37]
    fates = pq.read_table(tmp_path / "out/parts/fates.parquet").to_pylist()
    assert [row["number"] for row in fates] == list(range(40))
    assert [row["fate"] for row in fates[37:]] == ["not taken"] * 3


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"lang=en/part-0.parquet": 3}, r"contains lang=en/part-0.parquet, a part in a subfolder"),
        ({"part-0.parquet": 0}, r"has no rows \(parquet parts: 1\)"),
        ({}, r"is a folder without parquet parts. Name its files with a glob"),
    ],
)
def test_a_folder_that_is_no_source_is_a_sentence(tmp_path, parts, sentence):
    (tmp_path / "parts").mkdir()
    for name, size in parts.items():
        (tmp_path / "parts" / name).parent.mkdir(exist_ok=True)
        polars.DataFrame(GOOD[:size], dict.fromkeys(GOOD[0], polars.String)).write_parquet(tmp_path / "parts" / name)
    with pytest.raises(UserError, match=r"convert\.sources\[0\]: .*" + sentence):
        convert_sources(params(Source(path=str(tmp_path / "parts"))), tmp_path / "out")


def test_no_file_may_bear_the_name_of_the_generated_analysis_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()
    write_parts(tmp_path / "analysis", [40])
    with pytest.raises(UserError, match=r"convert\.sources\[0\].*: analysis is also the name.*Rename"):
        convert_sources(params(Source(path="analysis", format="alpaca")), tmp_path / "out")
