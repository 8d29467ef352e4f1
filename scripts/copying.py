"""Make conversations in which a part of a text is copied (words, names, numbers, Chinese characters), for `make base`.

    python scripts/copying.py data/raw/copying.jsonl --rows 16000

A text is a list of notes, each with two parts. All notes are in one message, or one note is in each round. A question
names one part and asks for the other part, which the text contains word for word; or it asks for the parts of all notes
(`--lists`), or whether a claim agrees with a note (`--checks`), or whether the parts of pairs are equal (`--pairs`).
No wording of `glm2core.analysis` is used, and none of
its held-out entities. The same arguments give the same bytes.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from notes import CHINESE, ENGLISH, Language, Unit, Verb, altered, drawn, is_trained_on

Message = dict[str, str]
Round = tuple[str, str]
Note = tuple[str, Verb, str]
Units = dict[Verb, tuple[Sequence[Unit], Sequence[Unit]]]
_INVENTED_SHARE = 0.6
_TYPED_SHARE = 0.5
_NUMBERED_SHARE = 0.3
_LOCATED_SHARE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--checks", type=float, default=0.15, help="share of the conversations that check claims")
    parser.add_argument("--lists", type=float, default=0.1, help="share of the conversations that list parts")
    parser.add_argument("--pairs", type=float, default=0.0, help="share of the conversations that compare pairs")
    arguments = parser.parse_args()
    with arguments.out.open("w", encoding="utf-8") as file:
        for number in range(arguments.rows):
            rng = random.Random(f"copying {arguments.seed} {number}")
            language = CHINESE if rng.random() < 0.5 else ENGLISH
            if arguments.pairs and rng.random() < arguments.pairs:
                messages = compared_pairs(rng, language)
            else:
                messages = conversation(rng, language, checks=arguments.checks, lists=arguments.lists)
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def conversation(rng: random.Random, language: Language, *, checks: float, lists: float) -> list[Message]:
    """Make a conversation with one to six questions about two to seven notes.

    Args:
        checks, lists: the shares of conversations that ask whether claims are true, and for the parts of all notes.
    """
    kind = rng.choices(("ask", "check", "list"), (1 - checks - lists, checks, lists))[0]
    invented = rng.random() < _INVENTED_SHARE
    verbs = _invented_verbs(rng, language) if invented else rng.sample(language.verbs, 3)
    verbs = [verb for verb in verbs if verb.named or kind != "check"] or rng.sample(language.verbs, 1)
    units = _drawn_units(rng, language, verbs, one=kind == "list")
    notes = _notes(rng, verbs[: rng.randint(1, 3)], units, rng.randint(2, 4 if kind == "list" else 7))
    picked = rng.sample(notes, min(len(notes), rng.randint(1, 4)))
    texts = [verb.note.format(left=left, right=right) for left, verb, right in notes]
    if kind == "check":
        asked = _checked(rng, language, notes, rng.choices(notes, k=rng.randint(2, 6)), units)
    elif kind == "list":
        asked = _listed(rng, language, notes, units)
    else:
        asked = [_question(rng, language, notes, note) for note in picked]
    if kind != "check" and rng.random() < _NUMBERED_SHARE:
        heads = _heads(rng, language, len(notes))
        texts = [head + language.head_mark + text for head, text in zip(heads, texts, strict=True)]
        asked = _located(rng, language, asked, dict(zip(notes, heads, strict=True)), picked)
    if rng.random() < 0.25:  # one note per round
        return _messages([(text, rng.choice(language.acknowledged)) for text in texts] + asked)
    text, (question, answer) = rng.choice(language.joints).join(texts), asked[0]
    together = f"{question}\n{text}" if rng.random() < 0.6 else f"{text}\n{question}"
    return _messages([(together, answer), *asked[1:]])


def compared_pairs(rng: random.Random, language: Language) -> list[Message]:
    """Make a conversation with one question about four to twelve pairs, each of two parts that are equal or not.

    About a quarter of the conversations have parts of one or two characters.
    """
    template, verdicts = rng.choice(language.checked), rng.choice(language.verdicts)
    unit = rng.choice((language.brief, language.brief, *language.units))
    pairs = []
    for _ in range(rng.randint(4, 12)):
        first = drawn(rng, (unit,))
        second = first if rng.random() < 0.5 else _other_part(rng, unit, first)
        pairs.append((first, second))
    mark = rng.choice((" ", " | ", " - ", " & "))
    text = rng.choice(("\n", "; ")).join(mark.join(pair) for pair in pairs)
    compared = [template.format(right=a, claimed=b, verdict=verdicts[a != b]) for a, b in pairs]
    question = rng.choice(language.comparing).format(true=verdicts[0], false=verdicts[1])
    return _messages([(f"{question}\n{text}", language.listing.join(compared))])


def _other_part(rng: random.Random, unit: Unit, part: str) -> str:
    """A different part of the same unit, often with a few characters changed."""
    return _first_other(part, lambda: altered(rng, part) if rng.random() < 0.4 else drawn(rng, (unit,)))


def _first_other(part: str, propose: Callable[[], str]) -> str:
    """The first proposal that differs from the part and is no held-out entity."""
    while True:
        other = propose()
        if other != part and is_trained_on(other):
            return other


def _messages(rounds: Sequence[Round]) -> list[Message]:
    return [
        {"role": role, "content": content}
        for pair in rounds
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


def _drawn_units(rng: random.Random, language: Language, verbs: Sequence[Verb], one: bool) -> Units:
    """Each verb's units on the left and on the right: any units, or names on the left and one other unit on the right.

    Args:
        one: whether the verbs always have one and the same unit on the right.
    """
    every, left = tuple(language.units), rng.choice(language.names)
    others = [unit for unit in every if unit is not left]
    if one:
        return dict.fromkeys(verbs, ((left,), (rng.choice(others),)))
    if rng.random() < _TYPED_SHARE:
        return {verb: ((left,), (rng.choice(others),)) for verb in verbs}
    return dict.fromkeys(verbs, (every, every))


def _notes(rng: random.Random, verbs: Sequence[Verb], units: Units, count: int) -> list[Note]:
    """Make unambiguous notes: if a left part appears twice, it has a different verb each time."""
    notes: list[Note] = []
    while len(notes) < count:
        verb = rng.choice(verbs)
        left = drawn(rng, units[verb][0])
        if notes and rng.random() < 0.3 and all(verb.named for verb in verbs):
            left = rng.choice(notes)[0]
        if (left, verb) not in [note[:2] for note in notes]:
            notes.append((left, verb, drawn(rng, units[verb][1])))
    return notes


def _heads(rng: random.Random, language: Language, count: int) -> list[str]:
    """Numbered heads of the notes, such as `bef 1`, `bef 2`, or `bef 1 ta`, `bef 2 ta`."""
    before, after = language.filler(rng), rng.choice(("", language.space + language.filler(rng)))
    first = rng.choice((1, 1, 1, rng.randint(2, 90)))
    return [f"{before}{language.space}{number}{after}" for number in range(first, first + count)]


def _invented_verbs(rng: random.Random, language: Language) -> list[Verb]:
    """Make three verbs of meaningless words. Each occurs in one conversation only, so a network learns only to copy."""
    return [_invented_verb(rng, language) for _ in range(3)]


def _invented_verb(rng: random.Random, language: Language) -> Verb:
    def words(least: int, most: int) -> str:
        return language.space.join(language.filler(rng) for _ in range(rng.randint(least, most)))

    def joined(*parts: str) -> str:
        return language.space.join(part for part in parts if part)

    word = words(1, 2)
    parts = ("{left}", "{right}") if rng.random() < 0.7 else ("{right}", "{left}")
    asked = word if rng.random() < 0.7 else ""

    def question(key: str) -> str:
        order = [words(0, 2), asked, key] if rng.random() < 0.5 else [words(0, 2), key, asked]
        return joined(*order, words(0, 2)) + rng.choice(language.marks)

    def note(parts: Sequence[str]) -> str:
        return joined(words(0, 2), parts[0], word, parts[1], words(0, 1))

    return Verb(
        note(parts),
        question("{left}"),
        question("{right}"),
        joined(words(1, 2), word, words(0, 1)) + rng.choice(language.marks),
        bool(asked),
        note(parts[:: rng.choice((1, 1, -1))]),
    )


def _question(rng: random.Random, language: Language, notes: Sequence[Note], note: Note) -> Round:
    left, verb, right = note
    kind = rng.random()
    if verb.all_right is not None and kind < 0.15:
        return verb.all_right, language.listing.join(other[2] for other in notes if other[1] == verb)
    if kind < 0.55:
        return verb.right.format(left=left), right
    if kind < 0.85:
        return verb.left.format(right=right), left
    return language.whole.format(right=right), verb.note.format(left=left, right=right)


def _located(
    rng: random.Random, language: Language, asked: Sequence[Round], heads: dict[Note, str], picked: Sequence[Note]
) -> list[Round]:
    """Replace some of the questions by questions for the head of the note that contains a part."""
    word, parts = language.filler(rng), [part for left, _, right in heads for part in (left, right)]
    located = list(asked)
    for number, note in enumerate(picked[: len(asked)]):
        part = rng.choice((note[0], note[2]))
        if parts.count(part) == 1 and rng.random() < _LOCATED_SHARE:
            located[number] = language.located.format(word=word, part=part), heads[note]
    return located


def _listed(rng: random.Random, language: Language, notes: Sequence[Note], units: Units) -> list[Round]:
    """Ask for the parts on one side of all notes, by the word for their unit."""
    sides = [(units[notes[0][1]][0][0], [left for left, _, _ in notes])]
    sides.append((units[notes[0][1]][1][0], [right for _, _, right in notes]))
    rng.shuffle(sides)
    return [
        (rng.choice(language.gathered).format(unit=language.units[unit]), language.listing.join(parts))
        for unit, parts in sides[: rng.randint(1, 2)]
    ]


def _checked(
    rng: random.Random, language: Language, notes: Sequence[Note], asked: Sequence[Note], units: Units
) -> list[Round]:
    """Ask whether claims about notes are true. All questions of a conversation have one wording."""
    question, answer = rng.choice(language.checks), rng.choice(language.checked)
    verdicts = rng.choice(language.verdicts)
    rounds = []
    for left, verb, right in asked:
        claimed = right if rng.random() < 0.5 else _another_right(rng, units[verb][1], notes, right)
        # Only the units tell which part is which in a claim with the parts in the other order
        template = rng.choice((verb.note, verb.claim or verb.note)) if len(units[verb][1]) == 1 else verb.note
        claim = template.format(left=left, right=claimed)
        verdict = verdicts[claimed != right]
        said = question.format(claim=claim, true=verdicts[0], false=verdicts[1])
        rounds.append((said, answer.format(right=right, claimed=claimed, verdict=verdict)))
    return rounds


def _another_right(rng: random.Random, units: Sequence[Unit], notes: Sequence[Note], right: str) -> str:
    """The right part of another note, the same part with a few characters changed, or a new part."""
    kind = rng.random()
    others = [note[2] for note in notes if note[2] != right]
    if others and kind < 0.4:
        return rng.choice(others)
    return _first_other(right, lambda: altered(rng, right) if kind < 0.7 else drawn(rng, units))


if __name__ == "__main__":
    main()
