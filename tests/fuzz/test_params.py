"""Hostile params.yaml and tuning.yaml: each is taken or refused in short sentences, soon, and nothing in it runs.

`python -m pytest -m slow tests/fuzz/test_params.py --seed 7` tries other files than the fixed seeds do.
"""

import copy
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from glm2core.data.sources import find_files
from glm2core.errors import UserError
from glm2core.params import flatten, load_params, read_base, settle, settle_tokenize
from tests.fuzz.harness import ROOT, ends_within, refused, run_fuzzer

FILES = 360  # a seed; two of them
SECONDS = 20  # for one file
MOST_SECONDS = 5.0  # of a core, that one file took
DEFAULTS = (ROOT / "params.yaml").read_text(encoding="utf-8")
ADVICE = (ROOT / "models" / "base" / "tuning.yaml").read_text(encoding="utf-8")

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    2**31,
    2**32,
    2**63,
    2**64,
    10**18,
    -(2**63),
    0.0,
    -0.5,
    0.5,
    1.5,
    1e-320,
    1e30,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "auto",
    "Auto",
    "null",
    "1e-4",
    "yes",
    "a" * 300,
    "x" * 100_000,
    "\0",
    "a\nb",
    "\x1b[31m",
    "\u202e",
    "\u2028",
    "é" * 200,
    "/etc/passwd",
    "../..",
    "~nobody/x",
    "~",
    "a/../../b",
    "[",
    "[a",
    "*.json",
    "$(touch owned)",
    "`touch owned`",
    "${train.seed}",
    "; touch owned",
    "--help",
    [],
    [None],
    [[]],
    [1, "a"],
    ["auto"],
    [0.5] * 50,
    {},
    {"a": 1},
    {"": ""},
    {"x" * 5000: 1},
    [{}],
    [{"until": 0.5}],
    [{"until": 0.5, "max_tokens": 10**12}],
    "torchrun",
    "torchrun --nproc_per_node 2",
    "python -c 1",
    "sh -c id",
    "accelerate launch -m os",
    "torchrun --no-python touch owned",
    "accelerate",
    "python;touch owned",
    {"prompt": "a", "response": "a"},
    {"prompt": None},
    {"columns": {"a": ["b"]}},
]
WRITTEN = [
    "!!python/object/apply:os.system ['touch owned']",
    "!!python/name:os.system",
    "!x y",
    "!!binary aGk=",
    "!!set {a}",
    "!!int x",
    "!!timestamp 2001-99-99",
    "2001-13-45",
    "2001-12-14",
    "0x" + "f" * 5000,
    "9" * 5000,
    "1e9999",
    "0o7",
    "-" * 50,
    "[" * 3000,
    "{" * 3000,
    "{a: " * 3000,
    "[" * 3000 + "]" * 3000,
    "&a [*a]",
    "*nowhere",
    "<<: *x",
    "? [a, b]\n: c",
    "{[a]: b}",
    "{{a: b}: c}",
    "|\n  x\n y",
    "'",
    '"\\ud800"',
    '"\\x00"',
    '"\\U0010FFFF"',
    "%YAML 1.1",
    "%TAG ! !x",
    "---\na: 1\n---\nb: 2",
    "...",
    "\t- a",
    "a: b: c",
    "- - -",
    "@",
    "`",
    "#",
    ": :",
    "\r",
    "\x85",
    "\ufeff",
    "<<: {seed: 1}",
    "<<: 5",
    "{<<: [1]}",
    "1_000",
    "12:30:45",
    ".nan",
    "~",
    "=",
    "<<",
]


class Maker:
    """Files that are nearly right, and worse ones, from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def file(self) -> tuple[str, bytes]:
        """(name, content) of one file."""
        name, text = self.rng.choice([("params.yaml", DEFAULTS)] * 3 + [("tuning.yaml", ADVICE)])
        make: Callable[[str], str] = self.rng.choice([self.valued, self.valued, self.keyed, self.written, self.huge])
        content = make(text).encode("utf-8", "surrogatepass")
        return name, self.damaged(content) if self.rng.random() < 0.2 else content

    def valued(self, text: str) -> str:
        """One or two values replaced."""
        values = plain(text)
        for _ in range(self.rng.choice([1, 1, 2])):
            self._somewhere(values)
        return json.dumps(values)  # NaN and Infinity, which YAML takes for words, too

    def keyed(self, text: str) -> str:
        """Keys dropped, doubled, misspelt, or moved to where they don't belong."""
        values = plain(text)
        section = self._section(values)
        key = self.rng.choice([*section])
        match self.rng.randrange(4):
            case 0:
                del section[key]
            case 1:
                section[key[::-1] + "x" * self.rng.choice([0, 1, 3000])] = section.pop(key)
            case 2:
                self._section(values)[self.rng.choice(["seed", "\0", "\x1b[2J", "", "é"])] = copy.deepcopy(section[key])
            case _:
                return text + f"\n{next(iter(values))}: {{{key}: 1}}\n"
        return json.dumps(values)

    def written(self, text: str) -> str:
        """A value that JSON can't write, or a line of it, somewhere in the text."""
        lines = text.splitlines()
        place = self.rng.randrange(len(lines))
        what = self.rng.choice(WRITTEN)
        line = lines[place]
        lines[place] = self.rng.choice([line.split(":")[0] + ": " + what, what, line + what, line + "\n" + what])
        return "\n".join(lines) + "\n"

    def huge(self, text: str) -> str:
        """Files that would cost much time or memory."""
        width, depth = self.rng.choice([2, 10, 30]), self.rng.choice([5, 15, 60])
        bomb = "a0: &a0 [x, x]\n" + "".join(
            f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, depth)
        )
        more = "".join(f"key_{i}: {i}\n" for i in range(self.rng.choice([100, 3000, 20_000])))
        entries = "convert: {sources: [" + "{path: a}, " * self.rng.choice([100, 20_000]) + "]}\n"
        return self.rng.choice(
            [
                bomb,
                bomb + text,
                more,
                text + more,
                entries,
                "x" * 2_000_000,
                "# " + "x" * 2_000_000,
                "a: " + "b " * 400_000,
            ]
        )

    def damaged(self, content: bytes) -> bytes:
        """Flipped, deleted or inserted bytes."""
        data = bytearray(content)
        for _ in range(self.rng.choice([1, 1, 5])):
            place = self.rng.randrange(len(data) + 1)
            match self.rng.randrange(3):
                case 0 if place < len(data):
                    data[place] ^= 1 << self.rng.randrange(8)
                case 1:
                    del data[place : place + self.rng.randint(1, 20)]
                case _:
                    data[place:place] = self.rng.choice(
                        [b"\0", b"\xff", b"\xed\xa0\x80", b"\n", b'"', b"&a ", b"*a", b"!"]
                    )
        return bytes(data)

    def _section(self, values: Any) -> dict[str, Any]:
        """Any of the sections below `values`, at any depth."""
        found, waiting = [], [values]
        while waiting:
            current = waiting.pop()
            if isinstance(current, dict) and current:
                found.append(current)
            waiting += current.values() if isinstance(current, dict) else current if isinstance(current, list) else []
        section: dict[str, Any] = self.rng.choice(found)
        return section

    def _somewhere(self, values: Any) -> None:
        section = self._section(values)
        section[self.rng.choice([*section])] = copy.deepcopy(self.rng.choice(VALUES))


def plain(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def check(folder: Path, name: str) -> str:
    """Read one file as a stage would; returns `taken` or `refused`. Anything else is a fault."""
    try:
        if name == "tuning.yaml":
            params, base = load_params(ROOT / "params.yaml"), read_base(folder)
        else:
            params = load_params(folder / name)
            base = read_base(params.model.base, params.model.preset)
            for source in params.convert.sources:
                if source.path is not None:
                    find_files(source.path, "convert.sources")
        settled = settle(params, base, "cpu")
        settle_tokenize(params.tokenize)
    except UserError as error:
        return refused(error, 8000)
    said = "\n".join(settled.lines("model", "train", "evaluate"))
    assert json.dumps(settled.metrics("model", "train", "evaluate"), allow_nan=False) and said and flatten(params)
    return "taken"


def fuzz(seed: int, count: int, folder: Path) -> None:
    """Try `count` files and print what became of them; the first fault's file stays in the folder."""
    maker, tally, longest = Maker(seed), Counter[str](), 0.0
    for _ in range(count):
        name, content = maker.file()
        (folder / name).write_bytes(content)
        started = time.process_time()
        with ends_within(SECONDS):
            tally[check(folder, name)] += 1
        longest = max(longest, time.process_time() - started)
        (folder / name).unlink()
    print(json.dumps({**tally, "longest": round(longest, 2)}))


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(2))
def test_hostile_params_are_taken_or_refused(tmp_path: Path, nth: int, request: pytest.FixtureRequest) -> None:
    found = run_fuzzer("test_params", nth, FILES, tmp_path, request)
    assert found["taken"] > FILES // 50 and found["refused"] > FILES // 2
    assert found["longest"] < MOST_SECONDS
    assert list(tmp_path.iterdir()) == [] and not (ROOT / "owned").exists()


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
