"""Conversations to token files: the same bytes for any threads, everything counted, examples marked."""

import json
from pathlib import Path

import numpy as np
import polars
import pytest

from glm2core.conversation import SPLITS
from glm2core.data.convert import convert_sources
from glm2core.data.converted import read_conversations
from glm2core.data.reports import convert_metrics, write_convert_tables
from glm2core.errors import UserError
from glm2core.labels import IGNORED
from glm2core.params import ConvertParams, Source, TokenizeParams
from glm2core.text.dataset import TokenizedDataset
from glm2core.text.encode import encode_converted, render_examples, tokenizer_for
from glm2core.text.reports import tokenize_metrics, write_tokenize_tables
from glm2core.text.tokenizer import EOS, SpTokenizer

ROWS = [
    {"prompt": f"question {i} 问题", "response": "word " * (i % 50), "history": [["past " * i, "answer"]] * (i % 3)}
    for i in range(1, 200)
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    params = ConvertParams(sources=[Source(path=str(folder / "rows.json"))])
    report = convert_sources(params, folder / "converted")
    write_convert_tables(report, folder / "converted", folder / "reports")
    assert (folder / "reports/fates.csv").read_text() == (
        "fate,rows\nkept,196\nduplicate,0\nnot taken,0\nrejected: response is empty,3\n"
    )
    assert (folder / "reports/sources.csv").read_text() == (
        "source,format,read,kept,rejected,duplicates,not_taken\n"
        f"{folder / 'rows.json'},chatglm (JSON array),199,196,3,0,0\n"
    )
    assert convert_metrics(report)["rejected_fraction"] == pytest.approx(3 / 199)
    return folder / "converted"


def encode(converted, out, tokenizer, **settings):
    settings = {"max_source_length": 120, "max_target_length": 60} | settings
    return encode_converted(converted, out, tokenizer, "chatglm2", TokenizeParams(**settings))


def test_the_same_bytes_for_one_two_and_four_threads(converted, tmp_path, tokenizer):
    files = [f"{split}.parquet" for split in SPLITS]
    files += ["tokenizer/tokenizer.model", "tokenizer/tokenizer_config.json"]
    for threads in (1, 2, 4):
        encode(converted, tmp_path / str(threads), tokenizer, threads=threads)
    for name in files:
        contents = {(tmp_path / str(threads) / name).read_bytes() for threads in (1, 2, 4)}
        assert len(contents) == 1, name


def test_every_row_is_counted_and_ends_unless_cut(converted, tmp_path, tokenizer):
    report = encode(converted, tmp_path, tokenizer)
    metrics = tokenize_metrics(report, tmp_path, tokenizer)
    datasets = {split: TokenizedDataset.load(tmp_path / f"{split}.parquet", tokenizer.sha256) for split in SPLITS}
    assert metrics["rows_train"] + metrics["rows_validation"] + metrics["rows_test"] + metrics["rows_dropped"] == 196
    assert metrics["tokens"] == sum(dataset.lengths.sum() for dataset in datasets.values())
    assert metrics["tokens_supervised"] == sum(dataset.supervised_tokens for dataset in datasets.values())
    ends = [dataset.row(i)[1][-1] == EOS for dataset in datasets.values() for i in range(len(dataset))]
    assert ends.count(False) == metrics["responses_cut"] > 0
    assert metrics["rounds_dropped"] >= metrics["prompts_without_oldest_rounds"] > 0
    assert metrics["texts_cut_in_the_middle"] == 0
    longest = max(dataset.lengths.max() for dataset in datasets.values())
    assert metrics["tokens_longest"] == longest <= 120 + 60


def test_tables_for_plots(converted, tmp_path, tokenizer):
    report = encode(converted, tmp_path / "out", tokenizer, truncation="drop")
    write_tokenize_tables(report, tmp_path / "out", render_examples(report, tokenizer), tmp_path / "reports")
    header, *lines = (tmp_path / "reports/lengths.csv").read_text().splitlines()
    assert header == "tokens,prompts,responses,rows"
    columns = np.array([[int(value) for value in line.split(",")] for line in lines])
    assert (columns[:, 1:].sum(axis=0) == sum(report.rows.values())).all()
    dropped = (tmp_path / "reports/dropped.csv").read_text().splitlines()
    assert len(dropped) - 1 == len(report.dropped) > 0
    assert dropped[1].endswith(",the prompt is over max_source_length")
    examples = (tmp_path / "reports/examples.md").read_text(encoding="utf-8")
    assert examples.count("\n## ") == 3
    first = TokenizedDataset.load(tmp_path / "out/train.parquet").row(0)
    prompt = tokenizer.decode(first[0][first[1] == IGNORED], skip_special=False)
    answer = tokenizer.decode(first[1][first[1] != IGNORED], skip_special=False)
    assert f"```\n{prompt}«{answer}»\n```" in examples


def test_no_row_left_is_an_error(converted, tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"no row of the training split fits: .* Raise tokenize\.max_source_length"):
        encode(converted, tmp_path, tokenizer, max_source_length=5, truncation="drop")


def test_the_tokenizer_of_a_base_or_one_trained_here(converted, tmp_path, tokenizer, monkeypatch):
    params = TokenizeParams(vocabulary_size=320)
    trained, template, _ = tokenizer_for(None, params, converted)
    assert (trained.size, template) == (320, "chatglm2")
    assert trained.model == tokenizer_for(None, params, converted)[0].model
    tokenizer.save(tmp_path / "models/base", "chatglm3")
    monkeypatch.chdir(tmp_path)
    found, template, evidence = tokenizer_for("models/base", params, converted)
    assert (found.sha256, template, evidence) == (
        tokenizer.sha256,
        "chatglm3",
        "tokenizer_config.json states prompt_template chatglm3",
    )
    assert tokenizer_for("models/base", TokenizeParams(template="chatglm2"), converted)[1] == "chatglm2"
    with pytest.raises(UserError, match="models/none is not a folder"):
        tokenizer_for("models/none", params, converted)
    (tmp_path / "models/empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no tokenizer\.model"):
        tokenizer_for("models/empty", params, converted)
    with pytest.raises(UserError, match="Run the convert stage first"):
        tokenizer_for(None, params, tmp_path / "nothing")


def test_real_rows_of_two_languages(alpaca_files, tmp_path):
    params = ConvertParams(sources=[Source(path=str(file)) for file in alpaca_files])
    convert_sources(params, tmp_path / "converted")
    settings = TokenizeParams(vocabulary_size=4000)
    tokenizer, template, _ = tokenizer_for(None, settings, tmp_path / "converted")
    report = encode_converted(tmp_path / "converted", tmp_path / "out", tokenizer, template, settings)
    assert sum(report.rows.values()) == 1977
    assert isinstance(tokenizer, SpTokenizer)
    # A trained vocabulary of this size holds at least 1.5 characters a token on English and Chinese mixed
    dataset = TokenizedDataset.load(tmp_path / "out/train.parquet")
    text = tokenizer.decode(np.concatenate([dataset.row(i)[0] for i in range(len(dataset))]))
    assert len(text) / dataset.lengths.sum() > 1.5


@pytest.mark.parametrize("truncation", ["rounds", "left", "right", "drop"])
def test_what_a_row_says_of_itself_is_true(tmp_path, tokenizer, truncation):
    """Its source and token counts, and the tables by source that are made of them, against the ids and labels."""
    names = ("a.json", "b.json")
    for number, name in enumerate(names):
        (tmp_path / name).write_text(json.dumps(ROWS[number * 90 : number * 90 + 90 + 10 * number]), encoding="utf-8")
    sources = [Source(path=str(tmp_path / name), loss_on="every") for name in names]
    convert_sources(ConvertParams(sources=sources, max_rejected_fraction=0.5), tmp_path / "converted")
    report = encode(tmp_path / "converted", tmp_path / "out", tokenizer, truncation=truncation)
    write_tokenize_tables(report, tmp_path / "out", "", tmp_path / "reports")
    by_source = polars.read_csv(tmp_path / "reports/by_source.csv")
    columns = ("split", "source", "rows", "tokens", "supervised_tokens", "truncated_rows", "dropped_rows")
    assert by_source.columns == list(columns)
    found = []
    for split in SPLITS:
        origin = {row["id"]: row["source"] for row in read_conversations(tmp_path / f"converted/{split}.parquet")}
        rows = polars.read_parquet(tmp_path / f"out/{split}.parquet").to_dicts()
        for row in rows:
            assert row["source"] == origin.pop(row["id"])
            assert row["prompt_tokens"] + row["response_tokens"] == len(row["input_ids"]) <= 120 + 60
            assert set(row["labels"][-row["response_tokens"] :]) & {-100} == set()
            assert row["supervised_tokens"] == sum(label != -100 for label in row["labels"])
        assert list(origin.values()) == [source for at, source, *_ in report.dropped if at == split]
        for source in dict.fromkeys([row["source"] for row in rows] + list(origin.values())):
            group = [row for row in rows if row["source"] == source]
            tokens, supervised = (
                sum(len(row["input_ids"]) for row in group),
                sum(r["supervised_tokens"] for r in group),
            )
            cut = sum(bool(row["cuts"]) for row in group)
            found.append((split, source, len(group), tokens, supervised, cut, list(origin.values()).count(source)))
    assert by_source.rows() == found
    assert by_source["truncated_rows"].sum() + by_source["dropped_rows"].sum() > 0
