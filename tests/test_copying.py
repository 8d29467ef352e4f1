"""scripts/copying.py: rows for the embedded base, answered from their text, that leave analysis to be learnt later."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glm2core.analysis.entities import LANGUAGES, pool, split_of
from glm2core.analysis.wording import WORDINGS
from tests.workspace import ROOT, load_script

SCRIPT = ROOT / "scripts/copying.py"
copying = load_script("copying")


@pytest.mark.parametrize("language", [copying.ENGLISH, copying.CHINESE])
def test_an_answer_stands_in_the_text(language: Any) -> None:
    for seed in range(300):
        messages = copying.conversation(random.Random(seed), language, 0.3)
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        told = ""
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            told += question["content"] + "\n"
            parts = re.split("|".join(map(re.escape, separators(language))), answer["content"])
            assert answer["content"] in language.acknowledged or all(part in told for part in parts)


def separators(language: Any) -> list[str]:
    """What an answer of several parts has between and around them."""
    written = language.checked.replace("{verdict}", "|").split("|")[0]
    around = re.split(r"\{\w+\}", written)
    return [language.listing, *(f"{around[2]}{verdict}" for verdict in language.verdicts[::-1]), around[0], around[1]]


@pytest.mark.parametrize("language", [copying.ENGLISH, copying.CHINESE])
def test_a_checked_claim_gets_the_verdict_that_it_deserves(language: Any) -> None:
    pattern = re.compile(
        re.escape(language.checked)
        .replace(r"\{", "{")
        .replace(r"\}", "}")
        .format(right="(.+)", claimed="(.+)", verdict="(.+)")
    )
    verdicts = []
    for seed in range(300):
        for message in copying.conversation(random.Random(seed), language, 0.3):
            if message["role"] == "assistant" and (found := pattern.fullmatch(message["content"])):
                written, claimed, verdict = found.groups()
                assert verdict == language.verdicts[written != claimed]
                verdicts.append(verdict)
    assert min(verdicts.count(verdict) for verdict in language.verdicts) > 20


def test_the_same_arguments_give_the_same_rows(tmp_path: Path) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl", tmp_path / "other.jsonl"]
    for file, seed in zip(files, ("5", "5", "6"), strict=True):
        subprocess.run([sys.executable, SCRIPT, file, "--rows", "40", "--seed", seed], check=True)
    one, two, other = (file.read_bytes() for file in files)
    assert one == two != other
    assert len(one.splitlines()) == 40 and all("messages" in json.loads(line) for line in one.splitlines())


def test_no_entity_and_no_wording_of_analysis_is_met() -> None:
    messages = [
        message
        for seed in range(400)
        for language in (copying.ENGLISH, copying.CHINESE)
        for message in copying.conversation(random.Random(seed), language, 0.3)
    ]
    everything = "\n".join(message["content"] for message in messages)
    held_out = {language: pool(language, "held out") for language in LANGUAGES}
    assert not any(f" {given} " in f" {everything} " for given in held_out["en"].givens)
    copied = [message["content"] for message in messages if message["role"] == "assistant"]
    answers = {text for text in copied if text.isalpha()}
    assert len(answers) > 100 and all(split_of(text) == "training" for text in answers if len(text) in (2, 3, 4))
    for wording in WORDINGS.values():
        for attribute in wording.attributes.values():
            for template in (*attribute.facts, *attribute.questions, *attribute.owners, *attribute.listed):
                parts = [part for part in template.replace("}", "{").split("{")[::2] if len(part.strip()) > 4]
                assert not any(part in everything for part in parts), template
