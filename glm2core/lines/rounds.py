"""Makes training conversations, each with a record of facts of one or several kinds and questions about the record."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from glm2core.lines.draws import Draws
from glm2core.lines.facts import HOPS, Fact, facts
from glm2core.lines.mixture import Mixture, places
from glm2core.lines.records import RECORD_OVER, conversation, generate_conversations
from glm2core.lines.wordings import EVALUATION, TRAINING, invented_wording
from glm2core.lines.words import pool
from glm2core.params import GeneratedLines

_LETTERS = re.compile(r"REGISTER_CONTENT|[a-z ]")
_LINE = 25.0  # `_size` of a line of kind lines
_OF_A_ROUND = 2  # length of a question with its answer, measured in such lines
_OF_THE_RECORD = 0.75  # largest share that facts take of a record
_SAMPLE = 16
_INVENTED_WORDINGS = 0.5  # share of the records

Messages = list[dict[str, str]]


def conversations(spec: GeneratedLines) -> Iterator[Messages]:
    """Yield conversations with training words, each about facts of kinds that are drawn from `spec.kinds`.

    `spec.lines` sets the length of a record, and `spec.questions` sets the length of all its rounds. Both lengths are
    measured in lines and rounds of the kind `lines`, so kinds with longer lines get fewer facts. Each conversation
    contains at least one question. Conversation `i` depends only on the seed and `i`.

    Yields:
        Messages `{"role": "user" | "assistant", "content": text}`, of which the last one is an answer.
    """
    if set(spec.kinds) == {"lines"}:
        yield from generate_conversations(spec)
        return
    for index in range(spec.conversations):
        rng = random.Random(f"facts {spec.seed} {index}")
        kinds = rng.sample(spec.kinds, rng.randint(1, len(spec.kinds)))
        if kinds == ["lines"]:
            yield conversation(rng, spec, pool("training"))
        else:
            yield _mixed(rng, spec, kinds)


def _mixed(rng: random.Random, spec: GeneratedLines, kinds: Sequence[str]) -> Messages:
    draws = Draws(rng, "training", alike=rng.random() < spec.hard_negatives)
    repeated = rng.random() < spec.repeats
    if rng.random() < _INVENTED_WORDINGS:
        wording = invented_wording(draws.words)
    else:
        wording = rng.choice(TRAINING if spec.wording == "other" else (*TRAINING, EVALUATION))
    room = rng.choice(spec.lines) * _LINE
    asked = _facts(draws, spec, room, [facts(kind, draws, wording, rng.randrange(len(HOPS))) for kind in kinds])
    if repeated:
        asked = [replace(fact, lines=2 * fact.lines) if len(fact.lines) == 1 else fact for fact in asked]
    mixture = Mixture([(fact, places(rng, fact)) for fact in asked], kinds, draws, wording, invented=True)
    empty = _size(mixture.text(0))
    left = room - sum(_size(line) for fact in asked for line in fact.lines)
    a_line = (_size(mixture.text(_SAMPLE)) - empty) / _SAMPLE
    text, answered = mixture.record(max(0, int(left / a_line)))
    rounds = [entry.fact for entry in answered]
    rng.shuffle(rounds)
    messages: Messages = []
    for number, fact in enumerate(rounds):
        before = text + RECORD_OVER if number == 0 else ""
        messages += [{"role": "user", "content": before + fact.question}, {"role": "assistant", "content": fact.answer}]
    return messages


def _facts(draws: Draws, spec: GeneratedLines, room: float, streams: list[Iterator[Fact]]) -> list[Fact]:
    """Take facts of each kind in turn until the record or the rounds are full, but at least one fact if one exists."""
    record, rounds = _OF_THE_RECORD * room, spec.questions * _OF_A_ROUND * _LINE
    taken: list[Fact] = []
    while streams:
        stream = streams.pop(0)
        fact = next(stream, None)
        if fact is None:
            continue
        record -= sum(map(_size, fact.lines))
        rounds -= _size(fact.question) + _size(fact.answer)
        if taken and min(record, rounds) < 0:
            break
        taken.append(fact)
        streams.append(stream)
    return taken[: spec.questions]


def _size(text: str) -> float:
    """Estimate a text's tokens with a small tokenizer, in which two lower-case letters or spaces count as one token."""
    halves, count = _LETTERS.subn("", text)
    return len(halves) + count / 2
