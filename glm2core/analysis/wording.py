"""The wordings in rows of text analysis, in English and Chinese, with several alternatives for each purpose.

`{name}` is the person that a fact is about, `{value}` is what the fact says about this person, and `{relation}` is a
word such as brother.
"""

from dataclasses import dataclass

from glm2core.analysis.entities import Language


@dataclass(frozen=True)
class AttributeWording:
    """The texts for one kind of fact about a person.

    Attributes:
        facts: sentences that state the fact.
        questions: questions that give the name and ask for the value.
        owners: questions that give the value and ask for the name.
        told, recalled: what users say about themselves, and how they ask for it several rounds later.
        listed: questions that ask for the values in several texts.
    """

    facts: tuple[str, ...]
    questions: tuple[str, ...]
    owners: tuple[str, ...]
    told: tuple[str, ...]
    recalled: tuple[str, ...]
    listed: tuple[str, ...]


@dataclass(frozen=True)
class LanguageWording:
    """The texts of one language.

    Attributes:
        judged: questions that ask whether the following claim is true.
        replies: replies to what a user says.
        located: questions that ask which text names a value.
        explanation: a comparison of the text with the claim, from which the conclusion follows.
    """

    attributes: dict[str, AttributeWording]
    told_name: tuple[str, ...]
    recalled_name: tuple[str, ...]
    relations: tuple[str, ...]
    replies: tuple[str, ...]
    judged: tuple[str, ...]
    yes: str
    no: str
    located: tuple[str, ...]
    text_head: str
    between_sentences: str
    between_values: str
    explanation: str


_ENGLISH = LanguageWording(
    attributes={
        "place": AttributeWording(
            facts=("{name} lives in {value}.", "The home of {name} is in {value}.", "{name} moved to {value}."),
            questions=("Where does {name} live?", "Name the home of {name}.", "Which place does {name} live in?"),
            owners=("Who lives in {value}?", "Name the person from {value}.", "Whose home is {value}?"),
            told=("I live in {value}.", "My home is in {value}.", "I come from {value}."),
            recalled=("Where do I live?", "Which place do I come from?", "Name the place of my home."),
            listed=("List all places in the texts.", "Which places do the texts name?", "Name every place in order."),
        ),
        "date": AttributeWording(
            facts=("{name} was born on {value}.", "The birthday of {name} is {value}.", "On {value} {name} was born."),
            questions=("When was {name} born?", "Name the birthday of {name}.", "On which day was {name} born?"),
            owners=("Who was born on {value}?", "Name the person born on {value}.", "Whose birthday is {value}?"),
            told=("I was born on {value}.", "My birthday is {value}.", "The day of my birth is {value}."),
            recalled=("When was I born?", "Name my birthday.", "On which day was I born?"),
            listed=("List all dates in the texts.", "Which dates do the texts name?", "Name every date in order."),
        ),
        "amount": AttributeWording(
            facts=("{name} paid {value}.", "The bill of {name} was {value}.", "{value} were paid by {name}."),
            questions=("How much did {name} pay?", "Name the sum that {name} paid.", "What was the bill of {name}?"),
            owners=("Who paid {value}?", "Name the person who paid {value}.", "Whose bill was {value}?"),
            told=("I have saved {value}.", "I can spend {value}.", "My budget is {value}."),
            recalled=("How much money do I have?", "Name the sum that I told you.", "What can I spend?"),
            listed=("List all sums in the texts.", "Which sums do the texts name?", "Name every sum in order."),
        ),
        "relation": AttributeWording(
            facts=(
                "{value} is the {relation} of {name}.",
                "The {relation} of {name} is {value}.",
                "{name} has a {relation}, {value}.",
            ),
            questions=(
                "Who is the {relation} of {name}?",
                "Name the {relation} of {name}.",
                "Which {relation} has {name}?",
            ),
            owners=("Whose {relation} is {value}?", "Name the person whose {relation} is {value}."),
            told=("My {relation} is {value}.", "I have a {relation}, {value}.", "{value} is my {relation}."),
            recalled=("Who is my {relation}?", "Name my {relation}.", "What is my {relation} called?"),
            listed=(),
        ),
    },
    told_name=("Hello, I am {value}.", "My name is {value}.", "Good day, this is {value}."),
    recalled_name=("What is my name?", "Who am I?", "Do you know my name?"),
    relations=("brother", "sister", "teacher", "doctor", "neighbour", "boss", "friend", "partner"),
    replies=("Good to know.", "I will remember it.", "Thank you.", "Noted."),
    judged=("Is this true? {claim}", "Judge by the text: {claim}", "True or not? {claim}"),
    yes="yes",
    no="no",
    located=("Which text names {value}?", "Find the text about {value}.", "Where is {value} named?"),
    text_head="Text {number}: ",
    between_sentences=" ",
    between_values="; ",
    explanation="The text says {value}, the claim says {claimed}.",
)

_CHINESE = LanguageWording(
    attributes={
        "place": AttributeWording(
            facts=("{name}住在{value}。", "{name}的家在{value}。", "{name}搬到了{value}。"),
            questions=("{name}住在哪里？", "写出{name}住的地方。", "{name}的家在什么地方？"),
            owners=("谁住在{value}？", "写出住在{value}的人。", "谁的家在{value}？"),
            told=("我住在{value}。", "我的家在{value}。", "我来自{value}。"),
            recalled=("我住在哪里？", "我的家在什么地方？", "写出我住的地方。"),
            listed=("写出所有的地方。", "这些话里有哪些地方？", "按顺序写出每个地方。"),
        ),
        "date": AttributeWording(
            facts=("{name}生于{value}。", "{name}的生日是{value}。", "{value}是{name}的生日。"),
            questions=("{name}的生日是哪天？", "写出{name}的生日。", "{name}是什么时候出生的？"),
            owners=("谁生于{value}？", "写出{value}出生的人。", "{value}是谁的生日？"),
            told=("我生于{value}。", "我的生日是{value}。", "{value}是我的生日。"),
            recalled=("我的生日是哪天？", "写出我的生日。", "我是什么时候出生的？"),
            listed=("写出所有的日期。", "这些话里有哪些日期？", "按顺序写出每个日期。"),
        ),
        "amount": AttributeWording(
            facts=("{name}花了{value}。", "{name}付了{value}。", "{name}的账单是{value}。"),
            questions=("{name}花了多少钱？", "写出{name}花的钱。", "{name}付了多少？"),
            owners=("谁花了{value}？", "写出花了{value}的人。", "谁付了{value}？"),
            told=("我有{value}。", "我可以花{value}。", "我手里有{value}。"),
            recalled=("我有多少钱？", "我可以花多少钱？", "写出我有的钱。"),
            listed=("写出所有的钱数。", "这些话里有哪些钱数？", "按顺序写出每个钱数。"),
        ),
        "relation": AttributeWording(
            facts=("{value}是{name}的{relation}。", "{name}的{relation}是{value}。", "{name}有个{relation}叫{value}。"),
            questions=("{name}的{relation}是谁？", "写出{name}的{relation}。", "谁是{name}的{relation}？"),
            owners=("{value}是谁的{relation}？", "谁的{relation}是{value}？"),
            told=("我的{relation}是{value}。", "我有个{relation}叫{value}。", "{value}是我的{relation}。"),
            recalled=("我的{relation}是谁？", "写出我的{relation}。", "我的{relation}叫什么？"),
            listed=(),
        ),
    },
    told_name=("你好，我是{value}。", "我叫{value}。", "我的名字是{value}。"),
    recalled_name=("我叫什么？", "我是谁？", "你知道我的名字吗？"),
    relations=("哥哥", "姐姐", "弟弟", "妹妹", "老师", "医生", "朋友", "同学"),
    replies=("好的。", "我记住了。", "谢谢你。", "知道了。"),
    judged=("这句话对吗？{claim}", "根据文字判断：{claim}", "对还是不对？{claim}"),
    yes="对",
    no="不对",
    located=("哪一段提到{value}？", "找出提到{value}的一段。", "{value}在哪一段里？"),
    text_head="第{number}段：",
    between_sentences="",
    between_values="；",
    explanation="文中是{value}，句中是{claimed}。",
)

WORDINGS: dict[Language, LanguageWording] = {"en": _ENGLISH, "zh": _CHINESE}
