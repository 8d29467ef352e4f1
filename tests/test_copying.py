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
notes = load_script("notes")  # imported by the next one
copying = load_script("copying")


LANGUAGES_OF_NOTES = pytest.mark.parametrize("language", [copying.ENGLISH, copying.CHINESE])


def conversation(seed: int, language: Any) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = copying.conversation(random.Random(seed), language, checks=0.3, lists=0.2)
    return messages


@LANGUAGES_OF_NOTES
def test_an_answer_stands_in_the_text(language: Any) -> None:
    listed = 0
    for seed in range(300):
        messages = conversation(seed, language)
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        told = ""
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            told += question["content"] + "\n"
            checked = comparison(language, answer["content"])
            parts = checked[:2] if checked else answer["content"].split(language.listing)
            listed += len(parts) > 2
            assert answer["content"] in language.acknowledged or all(part in told for part in parts)
    assert listed > 10


@LANGUAGES_OF_NOTES
def test_a_checked_claim_gets_the_verdict_that_it_deserves(language: Any) -> None:
    verdicts = []
    for seed in range(300):
        for message in conversation(seed, language):
            if message["role"] == "assistant" and (found := comparison(language, message["content"])):
                first, second, verdict = found
                assert verdict in [pair[first != second] for pair in language.verdicts]
                verdicts.append(first == second)
    assert min(verdicts.count(same) for same in (True, False)) > 20


@LANGUAGES_OF_NOTES
def test_every_pair_is_compared_in_order_and_gets_the_right_verdict(language: Any) -> None:
    equal = []
    for seed in range(100):
        question, answer = copying.compared_pairs(random.Random(seed), language)
        told, place = question["content"], 0
        for part in answer["content"].split(language.listing):
            found = comparison(language, part)
            assert found is not None, part
            first, second, verdict = found
            place = told.index(first, place)
            assert told.index(second, place) >= place
            assert verdict in [words[first != second] for words in language.verdicts]
            equal.append(first == second)
    assert 0.4 < equal.count(True) / len(equal) < 0.6


def comparison(language: Any, answer: str) -> tuple[str, str, str] | None:
    """The part in the notes and the part in the claim that an answer compares, and the answer's verdict."""
    for template in language.checked:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template))
        if (found := re.fullmatch(pattern, answer)) and found["verdict"] in sum(language.verdicts, ()):
            return found["right"], found["claimed"], found["verdict"]
    return None


@LANGUAGES_OF_NOTES
def test_a_list_names_every_part_of_its_unit_in_order(language: Any) -> None:
    words = set(language.units.values())
    seen = set()
    for seed in range(400):
        messages = copying.conversation(random.Random(seed), language, checks=0.0, lists=1.0)
        told = ""
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            told += question["content"] + "\n"
            asked = [
                word
                for word in words
                for form in language.gathered
                if question["content"].startswith(form.format(unit=word))
            ]
            if asked:
                parts = answer["content"].split(language.listing)
                assert len(parts) > 1 and re.search(".*".join(map(re.escape, parts)), told, re.DOTALL)
                seen.add(asked[0])
    assert seen == words


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
        for message in conversation(seed, language)
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
