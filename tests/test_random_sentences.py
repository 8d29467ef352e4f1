"""scripts/sentences.py: the same seed draws the same sentences, from documents, docstrings and errors alike."""

import ast
import subprocess
import sys

from tests.workspace import ROOT, load_script


def printed(seed: int) -> str:
    command = [sys.executable, "scripts/sentences.py", "--seed", str(seed), "--count", "30"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_seed_decides_which_sentences_are_printed() -> None:
    first = printed(1)
    assert first == printed(1)
    assert len(first.splitlines()) == 30
    assert first != printed(2)


def test_sentences_come_from_documents_docstrings_descriptions_and_errors() -> None:
    script = load_script("sentences")
    places = {place for place, _ in script.all_sentences()}
    assert {"README.md", "docs/training.md", "stages/train.py", "glm2core/params/train.py"} <= places
    assert not [place for place in places if "zh-CN" in place]
    code = (
        'class A:\n    """What it is for now."""\nraise UserError(f"{path}: this is wrong here. Fix it or not, you.")'
    )
    found = [sentence for text in script.texts(ast.parse(code)) for sentence in script.split(text)]
    assert found == ["What it is for now.", "{path}: this is wrong here.", "Fix it or not, you."]


def test_code_tables_and_headings_are_no_sentences() -> None:
    markdown = "# A heading of five words\n\n```\na b c d e f\n```\n| a | b |\n\nOne [link](x.md) here."
    text = load_script("sentences").prose(markdown)
    assert text.split() == ["One", "link", "here."]
