"""Generates rows of text analysis from a seed. The text or dialogue contains the answer word for word.

`extract` asks one question about one text, for a name, date, amount, place or relation.
`texts` sets one task about several texts: to list values, to look one up, or to tell which text names a person.
`tasks` asks several questions about one text in one conversation.
`judgement` asks whether a claim is true according to the text, and answers ` EXPLAIN: ... CONCLUSION: ...`.
`dialogue` asks about something that the user said several rounds earlier.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from glm2core.analysis.entities import LANGUAGES, EntityPool, EntitySplit, Language, pool
from glm2core.analysis.wording import WORDINGS, LanguageWording
from glm2core.conversation import ASSISTANT, USER, Conversation
from glm2core.params import GeneratedAnalysis

Kind = Literal["extract", "texts", "tasks", "judgement", "dialogue"]

KINDS: tuple[Kind, ...] = ("extract", "texts", "tasks", "judgement", "dialogue")
_ATTRIBUTES = ("place", "date", "amount", "relation")
_LISTED = ("place", "date", "amount")
_OWNER_SHARE = 0.25  # share of the questions that give the value and ask for the person
_OTHERS_VALUE_SHARE = 0.5  # share of the wrong claims with a different person's value from the same text


@dataclass(frozen=True)
class AnalysisRow:
    """A conversation, and the properties by which its scores are grouped."""

    split: EntitySplit
    kind: Kind
    language: Language
    conversation: Conversation


@dataclass(frozen=True)
class _Fact:
    attribute: str
    name: str
    value: str
    relation: str
    sentence: str


def generate_rows(spec: GeneratedAnalysis, *, held_out: bool = True) -> Iterator[AnalysisRow]:
    """Yield `spec.rows` training rows and then, if `held_out` is true, `spec.held_out_rows` held-out rows.

    The entities of held-out rows occur in no training row. A row depends only on the seed and on the row's number.
    """
    for number in range(spec.rows):
        yield _drawn_row(spec, "training", number)
    for number in range(spec.held_out_rows if held_out else 0):
        yield _drawn_row(spec, "held out", number)


def make_row(rng: random.Random, kind: Kind, language: Language, split: EntitySplit) -> AnalysisRow:
    """Make one row of this kind, language and split."""
    maker = _Maker(rng, WORDINGS[language], pool(language, split))
    make = {
        "extract": maker.extract,
        "texts": maker.texts,
        "tasks": maker.tasks,
        "judgement": maker.judgement,
        "dialogue": maker.dialogue,
    }
    return AnalysisRow(split, kind, language, make[kind]())


def _drawn_row(spec: GeneratedAnalysis, split: EntitySplit, number: int) -> AnalysisRow:
    rng = random.Random(f"analysis {split} {spec.seed} {number}")
    language = LANGUAGES[rng.random() < spec.chinese]
    shares = [getattr(spec.kinds, kind) for kind in KINDS]
    return make_row(rng, rng.choices(KINDS, shares)[0], language, split)


class _Maker:
    """Builds one row with one wording and one pool."""

    def __init__(self, rng: random.Random, wording: LanguageWording, entities: EntityPool) -> None:
        self._rng, self._wording, self._pool = rng, wording, entities

    def extract(self) -> Conversation:
        facts = self._facts(self._rng.randint(2, 4))
        question, answer = self._question(self._rng.choice(facts))
        return _about_text([(question, answer)], self._text(facts))

    def tasks(self) -> Conversation:
        facts = self._facts(self._rng.randint(3, 4))
        asked = self._rng.sample(facts, self._rng.randint(2, 3))
        return _about_text([self._question(fact) for fact in asked], self._text(facts))

    def judgement(self) -> Conversation:
        facts = self._facts(self._rng.randint(2, 3))
        fact = self._rng.choice(facts)
        true = self._rng.random() < 0.5
        claimed = fact.value if true else self._other_value(fact, facts)
        claim = self._filled(self._wording.attributes[fact.attribute].facts, fact, value=claimed)
        explanation = self._wording.explanation.format(value=fact.value, claimed=claimed)
        answer = f" EXPLAIN: {explanation} CONCLUSION: {self._wording.yes if true else self._wording.no}"
        question = self._rng.choice(self._wording.judged).format(claim=claim)
        return _about_text([(question, answer)], self._text(facts))

    def texts(self) -> Conversation:
        count = self._rng.randint(2, 3)
        attribute = self._rng.choice(_LISTED)
        facts = [self._fact(attribute, *pair) for pair in self._pairs(attribute, count)]
        texts = [self._wording.text_head.format(number=number) + fact.sentence for number, fact in enumerate(facts, 1)]
        task = self._rng.choice(("list", "look up", "locate"))
        asked = self._rng.randrange(count)
        if task == "list":
            question = self._rng.choice(self._wording.attributes[attribute].listed)
            answer = self._wording.between_values.join(fact.value for fact in facts)
        elif task == "look up":
            question, answer = self._question(facts[asked])
        else:
            question = self._rng.choice(self._wording.located).format(value=facts[asked].name)
            answer = self._wording.text_head.format(number=asked + 1).rstrip("：: ")
        return _about_text([(question, answer)], "\n".join(texts))

    def dialogue(self) -> Conversation:
        attributes = self._rng.sample(("name", *_ATTRIBUTES), self._rng.randint(2, 4))
        rounds, recalled = [], []
        for attribute in attributes:
            (value,) = self._pool.draw(self._rng, attribute, 1)
            relation = self._rng.choice(self._wording.relations)
            rounds.append((self._told(attribute, value, relation), self._rng.choice(self._wording.replies)))
            recalled.append((self._recalled(attribute, relation), value))
        # Not the last thing said: it is in the previous round
        rounds.append(self._rng.choice(recalled[:-1]))
        return _rounds(rounds)

    def _facts(self, count: int) -> list[_Fact]:
        """Different facts about two persons, in any order."""
        names = self._pool.draw(self._rng, "name", 2)
        wanted = self._rng.sample([(name, attribute) for name in names for attribute in _ATTRIBUTES], count)
        values = {attribute: self._pool.draw(self._rng, attribute, 4) for attribute in _ATTRIBUTES}
        facts = []
        for name, attribute in wanted:
            value = next(value for value in values[attribute] if value not in names)
            values[attribute].remove(value)
            facts.append(self._fact(attribute, name, value))
        return facts

    def _pairs(self, attribute: str, count: int) -> list[tuple[str, str]]:
        names, values = (self._pool.draw(self._rng, drawn, count) for drawn in ("name", attribute))
        return list(zip(names, values, strict=True))

    def _fact(self, attribute: str, name: str, value: str) -> _Fact:
        relation = self._rng.choice(self._wording.relations)
        sentence = self._rng.choice(self._wording.attributes[attribute].facts)
        return _Fact(attribute, name, value, relation, sentence.format(name=name, value=value, relation=relation))

    def _question(self, fact: _Fact) -> tuple[str, str]:
        """A question that a fact answers, and its answer."""
        wording = self._wording.attributes[fact.attribute]
        if self._rng.random() < _OWNER_SHARE:
            return self._filled(wording.owners, fact), fact.name
        return self._filled(wording.questions, fact), fact.value

    def _other_value(self, fact: _Fact, facts: list[_Fact]) -> str:
        others = [f.value for f in facts if f.attribute == fact.attribute and f.value != fact.value]
        if others and self._rng.random() < _OTHERS_VALUE_SHARE:
            return self._rng.choice(others)
        return next(v for v in self._pool.draw(self._rng, fact.attribute, 2) if v != fact.value)

    def _filled(self, templates: tuple[str, ...], fact: _Fact, value: str | None = None) -> str:
        template = self._rng.choice(templates)
        return template.format(name=fact.name, value=value or fact.value, relation=fact.relation)

    def _told(self, attribute: str, value: str, relation: str) -> str:
        name = attribute == "name"
        templates = self._wording.told_name if name else self._wording.attributes[attribute].told
        return self._rng.choice(templates).format(value=value, relation=relation)

    def _recalled(self, attribute: str, relation: str) -> str:
        name = attribute == "name"
        templates = self._wording.recalled_name if name else self._wording.attributes[attribute].recalled
        return self._rng.choice(templates).format(relation=relation)

    def _text(self, facts: list[_Fact]) -> str:
        return self._wording.between_sentences.join(fact.sentence for fact in facts)


def _about_text(rounds: list[tuple[str, str]], text: str) -> Conversation:
    """Put a line end and the text after the first question, as convert does with Alpaca's `input`."""
    (question, answer), *more = rounds
    conversation = _rounds([(f"{question}\n{text}", answer), *more])
    return conversation if more else Conversation(conversation.messages, len(question))


def _rounds(rounds: list[tuple[str, str]]) -> Conversation:
    return Conversation(
        [{"role": role, "content": text} for pair in rounds for role, text in zip((USER, ASSISTANT), pair, strict=True)]
    )
