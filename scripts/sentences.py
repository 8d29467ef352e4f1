"""Print sentences of this project, drawn at random, for a reader who marks those that need a second reading.

    python scripts/sentences.py --seed 1
    python scripts/sentences.py --seed 1 --count 20

The sentences come from the English documents, public docstrings, params' descriptions, help texts and error messages.
The same commit and seed print the same sentences.
"""

import argparse
import ast
import random
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("glm2core", "stages")
GENERATED = {"docs/parameters.md"}  # its descriptions are read from the code
LEAST_WORDS = 5
TEXT_KEYWORDS = {"description", "help", "epilog"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
Found = tuple[str, str]  # place, sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    arguments = parser.parse_args()
    sentences = sorted(set(all_sentences()))
    for place, sentence in random.Random(arguments.seed).sample(sentences, min(arguments.count, len(sentences))):
        print(f"{place}: {sentence}")


def all_sentences() -> Iterator[Found]:
    documents = [path for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]) if ".zh-CN" not in path.name]
    for document in documents:
        place = document.relative_to(ROOT).as_posix()
        if place not in GENERATED:
            yield from ((place, each) for each in split(prose(document.read_text(encoding="utf-8"))))
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            place = file.relative_to(ROOT).as_posix()
            for text in texts(ast.parse(file.read_text(encoding="utf-8"))):
                yield from ((place, each) for each in split(text))


def prose(markdown: str) -> str:
    """Return paragraphs and list items, without code blocks, tables, headings and pictures."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    kept = [line for line in text.splitlines() if not re.match(r"\s*(\||#|!\[|<)| {4}", line)]
    items = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n", "\n".join(kept), flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", items).replace("**", "")


def texts(tree: ast.Module) -> Iterator[str]:
    """Yield public docstrings, texts that are passed to argparse and pydantic, and error messages."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and not getattr(node, "name", "").startswith("_"):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.Call):
            given = [keyword.value for keyword in node.keywords if keyword.arg in TEXT_KEYWORDS]
            if getattr(node.func, "id", "").endswith("Error"):
                given += node.args
            yield from (written(argument) for argument in given)


def written(node: ast.expr) -> str:
    """Return the text of a string in the code, with its values as names in braces; empty for other expressions."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else written(part)
            for part in node.values
        )
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def split(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`\"'(])", " ".join(paragraph.split())):
            if len(sentence.split()) >= LEAST_WORDS:
                yield sentence


if __name__ == "__main__":
    main()
