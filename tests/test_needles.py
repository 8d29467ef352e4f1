"""data/examples/needles.jsonl: what its script writes, every answer in its record, no key among those trained on."""

import json

from glm2core.lines.records import parse_record
from glm2core.lines.words import split_of
from tests.workspace import load_script


def test_the_file_is_what_its_script_writes() -> None:
    needles = load_script("needles")
    written = [json.loads(line) for line in needles.FILE.read_text(encoding="utf-8").splitlines()]
    assert written == needles.rows()
    assert [len(row["instruction"]) for row in written] == sorted(len(row["instruction"]) for row in written)
    for row in written:
        lines = parse_record(row["instruction"])
        [asked] = [line for line in lines if row["instruction"].endswith(f"in line {line.key}? I need the number. ")]
        assert row["output"] == asked.text
        assert all(split_of(part) == "evaluation" for part in (*asked.adjective.split("-"), *asked.noun.split("-")))
