"""Wordings for the facts and questions of RULER's kinds and LongEval's topics: one for evaluation, others for training.

The wordings follow RULER's structure (Hsieh et al. 2024, arXiv:2404.06654) in this project's own words. A wording
contains a template for each type of line and each type of question. Names in braces, such as `{key}` and `{value}`,
are filled in.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """Templates for the lines and questions of a record. The names of templates for questions end in `question`.

    Args:
        header: the text in front of the record.
        hidden: the only line of its type in a record (niah_single_1).
        number: a line with a key and its number (niah_multikey_2, niah_multivalue, niah_multiquery).
        token: a line with two uuids, the key and its value (niah_multikey_3).
        set_value, set_name: lines with assignments (vt).
        coded: a line of coded words (fwe).
        topic: a line that names the topic of the lines after it (topics).
        noise: sentences unrelated to the questions.
    """

    header: str
    hidden: str
    hidden_question: str
    number: str
    number_question: str
    all_numbers_question: str
    several_question: str
    token: str
    token_question: str
    set_value: str
    set_name: str
    chain_question: str
    coded: str
    coded_question: str
    topic: str
    topic_question: str
    noise: tuple[str, ...]


EVALUATION = Wording(
    header=(
        "Below is a record of facts, one on each line. Keep all of them in mind. When the record is over, you will be "
        "asked about some of them. The record:\n\n"
    ),
    hidden="The sealed number of {key} is {value}.",
    hidden_question="What is the sealed number of {key}?",
    number="The stored number of {key} is {value}.",
    number_question="What is the stored number of {key}?",
    all_numbers_question="What are all the stored numbers of {key}?",
    several_question="What are the stored numbers of {keys}?",
    token="The access token of {key} is {value}.",
    token_question="What is the access token of {key}?",
    set_value="let {name} = {value}",
    set_name="let {name} = {other}",
    chain_question="Which variables have the value {value}? Name all of them.",
    coded="code: {words}",
    coded_question="Which three words stand most often in the lines of code, the dots apart?",
    topic="We now turn to the topic of {topic}.",
    topic_question="Which topic came first?",
    noise=(
        "The ferry leaves the pier when the bell has rung twice.",
        "Rain fell on the roofs until the gutters sang.",
        "A baker opens her shutters before the street is awake.",
        "Two herons stand in the shallow end of the pond.",
        "The old clock in the hall is a little slow in winter.",
        "Somebody left a blue umbrella on the bench again.",
        "Bread cools on the sill while the kettle hums.",
        "The path climbs past the mill and ends at a gate.",
        "Children fly paper kites where the meadow is widest.",
        "A cat sleeps on the ledger and nobody moves it.",
        "The tailor counts his buttons and begins once more.",
        "Lanterns swing along the quay when the wind turns.",
    ),
)

_NOISE = (
    "Snow lies on the fences and the dogs bark at it.",
    "My aunt keeps her letters in a tin behind the stove.",
    "They repaired the bridge twice, and twice it fell.",
    "No train has stopped here since the harvest.",
    "He paints the same hill from his window every May.",
    "Apples roll from the cart as it turns the corner.",
    "The choir practises late and off key.",
    "When the fog lifts, one can see both islands.",
    "A letter without a stamp came on Tuesday.",
    "She mends nets and hums to herself.",
    "Our neighbour sold his mule for an accordion.",
    "Nobody remembers who planted these poplars.",
    "Wasps built their nest under the seventh step.",
    "From the tower you hear only geese.",
)

TRAINING = (
    Wording(
        header=(
            "I want you to remember this list, whose lines each tell you something. I will ask you for some of it at "
            "the end of the list. Here it starts:\n\n"
        ),
        hidden="Only {key} has the hidden code, which is {value}.",
        hidden_question="Tell me the hidden code that {key} has.",
        number="The register of {key} says {value}.",
        number_question="Tell me what the register of {key} says.",
        all_numbers_question="Tell me everything that the registers of {key} say.",
        several_question="Tell me what the registers of {keys} say.",
        token="Entry {key} holds {value}.",
        token_question="Tell me what entry {key} holds.",
        set_value="set {name} to {value}",
        set_name="set {name} to {other}",
        chain_question="Tell me all names that are set to {value} in the end.",
        coded="words: {words}",
        coded_question="Tell me the three most frequent ones of the words, without dots.",
        topic="Next subject: {topic}",
        topic_question="Tell me the subject that the list began with.",
        noise=_NOISE,
    ),
    Wording(
        header="Read these lines carefully, for I will ask about them later.\n\n",
        hidden="Remember that the secret of {key} was {value}.",
        hidden_question="What was the secret of {key}? Answer with its line.",
        number="The count for {key}: {value}",
        number_question="What is the count for {key}?",
        all_numbers_question="What are the counts for {key}? There are several.",
        several_question="What are the counts for {keys}? Give each.",
        token="The mark for {key}: {value}",
        token_question="What is the mark for {key}?",
        set_value="VAR {name} := {value}",
        set_name="VAR {name} := VAR {other}",
        chain_question="Find the variables that come to {value}.",
        coded="text: {words}",
        coded_question="Find the three words that the text repeats most. Skip dots.",
        topic="## {topic}",
        topic_question="What is the earliest of the headings?",
        noise=_NOISE,
    ),
    Wording(
        header="A file of notes follows, and then some questions about the notes.\n\n",
        hidden="Note once: the pass of {key} is {value}.",
        hidden_question="Which pass does {key} have?",
        number="{key} was given {value}.",
        number_question="Which number was given to {key}?",
        all_numbers_question="Which numbers were given to {key}? List them.",
        several_question="Which numbers were given to {keys}? List them.",
        token="{key} was changed into {value}.",
        token_question="What was {key} changed into?",
        set_value="{name} = {value};",
        set_name="{name} = {other};",
        chain_question="Which names equal {value}?",
        coded="signal: {words}",
        coded_question="Which three parts of the signal came up most? Not the dots.",
        topic="Here begins the chapter about {topic}.",
        topic_question="With which chapter do the notes begin?",
        noise=_NOISE,
    ),
    Wording(
        header="Here is what is known so far. Learn it by heart, line by line; a quiz follows.\n\n",
        hidden="A number was buried under {key}, {value}.",
        hidden_question="Which number was buried under {key}?",
        number="In drawer {key} lies the number {value}.",
        number_question="Which number lies in drawer {key}?",
        all_numbers_question="Which numbers lie in drawer {key}, from first to last?",
        several_question="Which numbers lie in drawers {keys}?",
        token="Label {key} belongs to parcel {value}.",
        token_question="To which parcel does label {key} belong?",
        set_value="{name} gets {value}",
        set_name="{name} gets {other}",
        chain_question="Who gets {value}, directly or by others?",
        coded="heard: {words}",
        coded_question="Which three sounds were heard most often, if not dots?",
        topic="Let us talk about {topic} for a while.",
        topic_question="About what did we talk before everything else?",
        noise=_NOISE,
    ),
)


def invented_wording(words: Callable[[int, int], str]) -> Wording:
    """Make a meaningless wording. As in every wording, lines of the same type differ only in their content.

    A network that was trained on only a few wordings repeats these wordings instead of the line that a question asks
    for.

    Args:
        words: a function (fewest, most) that returns invented words, separated by spaces; the number of words is drawn
            between these two limits.
    """
    question = words(1, 4).capitalize()
    asked = {name: f"{question} {{{name}}}?" for name in ("key", "keys", "value")}
    number, assigned = f"{words(1, 3)} {{key}} {words(1, 2)} {{value}}.", f"{words(1, 2)} {{name}} {words(1, 2)} "
    return Wording(
        header=f"{words(3, 12).capitalize()}.\n\n",
        hidden=f"{words(1, 3)} {{key}} {words(1, 3)} {{value}}.",
        hidden_question=asked["key"],
        number=number,
        number_question=asked["key"],
        all_numbers_question=f"{words(1, 2).capitalize()} {asked['key']}",
        several_question=f"{words(1, 2).capitalize()} {asked['keys']}",
        token=f"{words(1, 3)} {{key}} {words(1, 2)} {{value}}.",
        token_question=asked["key"],
        set_value=assigned + "{value}",
        set_name=assigned + "{other}",
        chain_question=f"{words(1, 3).capitalize()} {asked['value']}",
        coded=f"{words(1, 1)}: {{words}}",
        coded_question=f"{words(2, 5).capitalize()}?",
        topic=f"{question}: {{topic}}",
        topic_question=f"{question}?",
        noise=_NOISE,
    )
