"""The sections of the data stages: `convert` and `tokenize`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from glm2core.errors import shown_names
from glm2core.params.section import (
    Auto,
    Count,
    FactKind,
    FilePath,
    Fraction,
    NonNegative,
    Section,
    Seed,
    Share,
    Threads,
)


class GeneratedLines(Section):
    """Long conversations: one record, many questions about it, of LongEval's `lines` and RULER's kinds."""

    conversations: Count = Field(description="how many conversations to generate")
    lines: list[Count] = Field(
        min_length=1,
        description="lines in a record, about 22 tokens each by the embedded tokenizer; a conversation takes one of "
        "these counts",
    )
    questions: Count = Field(description="questions (rounds) asked about one record")
    repeats: Fraction = Field(
        0.0, description="share of conversations whose record names some lines twice, which is easier to learn from"
    )
    hard_negatives: Fraction = Field(
        0.0, description="share of conversations whose lines share words and digits, so that keys nearly collide"
    )
    kinds: list[FactKind] = Field(
        ["lines"],
        min_length=1,
        description="what records hold: one or several of these, drawn anew for each; lines, and RULER's kinds, of "
        "whose longer facts there are fewer",
    )
    wording: Literal["other", "all"] = Field(
        "other", description="of RULER's kinds: other = never that of evaluation, all = that one, too"
    )
    seed: Seed = Field(0, description="seed of the generator; another seed, other records")


class AnalysisKinds(Section):
    """How often each kind of generated text analysis is drawn; shares of their sum."""

    extract: Share = Field(3.0, description="one text, one question: a name, date, amount, place or relation")
    texts: Share = Field(2.0, description="several texts, one task over all of them")
    tasks: Share = Field(2.0, description="several questions about one text, in one conversation")
    judgement: Share = Field(2.0, description="whether a claim is true, with EXPLAIN and CONCLUSION")
    dialogue: Share = Field(1.0, description="a user asks for what they told rounds ago")

    @model_validator(mode="after")
    def _some(self) -> "AnalysisKinds":
        if not any(self.model_dump().values()):
            raise ValueError("all kinds are 0, so nothing can be drawn; give at least one a share")
        return self


class GeneratedAnalysis(Section):
    """Short rows of text analysis whose answers stand in the text, in English and Chinese."""

    rows: NonNegative = Field(description="how many rows to generate to train on; 0 = no such source")
    held_out_rows: NonNegative = Field(
        120, description="rows about entities that no training row has, half to validate and half to test"
    )
    chinese: Fraction = Field(0.5, description="share of the rows in Chinese; the others are English")
    kinds: AnalysisKinds = Field(AnalysisKinds(), description="how often each kind is drawn")
    seed: Seed = Field(0, description="seed of the generator; another seed, other rows")


class Source(Section):
    """A file, a glob, a folder of parquet parts, or generated conversations."""

    format: Literal["auto", "alpaca", "chatglm", "messages", "sharegpt", "lines", "analysis"] = Field(
        "auto", description="format of the rows; auto detects it and says what it found; lines, analysis are generated"
    )
    path: FilePath | None = Field(
        None,
        description="file, glob, or folder of parquet parts, against the project's folder; null for generated rows, "
        "which need no file",
    )
    columns: dict[str, str] = Field(
        {},
        description="standard column name -> its name in this file, as in {prompt: question, response: answer}; "
        "a column of the file that is mapped is read under that name alone",
    )
    encoding: Literal["gb18030"] | None = Field(
        None, description="of a text file; null = UTF-8, UTF-16 or UTF-32, as its bytes tell; gb18030 holds GBK, too"
    )
    limit: Count | None = Field(None, description="take at most so many rows, the first ones; null = all")
    max_source_length: Count | None = Field(
        None, description="overrides tokenize.max_source_length for this source; null = as there"
    )
    max_target_length: Count | None = Field(
        None, description="overrides tokenize.max_target_length for this source; null = as there"
    )
    loss_on: Literal["last", "every"] | None = Field(
        None, description="overrides tokenize.loss_on for this source; null = as there"
    )
    held_out: bool = Field(True, description="false: every row is trained on, none is kept to validate or test")
    weight: Annotated[float, Field(ge=0.01, le=100)] = Field(
        1.0,
        description="how often train takes a row in an epoch: 2 = twice, 0.5 = in half of them, drawn by train.seed",
    )
    generate: GeneratedLines | None = Field(None, description="with format lines: what to generate; else null")
    analysis: GeneratedAnalysis | None = Field(None, description="with format analysis: what to generate; else null")

    @property
    def is_generated(self) -> bool:
        """Whether its rows come from no file."""
        return self.path is None

    @model_validator(mode="after")
    def _path_or_generate(self) -> "Source":
        if (self.generate is not None) != (self.format == "lines"):
            raise ValueError("generate goes with format lines, and format lines needs generate")
        if (self.analysis is not None) != (self.format == "analysis"):
            raise ValueError("analysis goes with format analysis, and format analysis needs analysis")
        if (self.path is None) != (self.format in ("lines", "analysis")):
            raise ValueError("needs a path (or, with format lines, generate instead of a path)")
        return self

    @model_validator(mode="after")
    def _columns_rename(self) -> "Source":
        theirs = list(self.columns.values())
        if twice := [name for name in dict.fromkeys(theirs) if theirs.count(name) > 1]:
            raise ValueError(f"columns gives {shown_names(twice[:1])} to two names; a column has one meaning")
        return self


class ConvertParams(Section):
    """Raw files -> conversations."""

    sources: list[Source] = Field(min_length=1, description="what to read, in order: files, globs, generated lines")
    validation_fraction: Fraction = Field(
        0.05, description="share of prompts held out to watch training; a prompt's rows stay together"
    )
    test_fraction: Fraction = Field(
        0.05, description="share of prompts held out for the evaluate stage; with validation_fraction below 1"
    )
    max_rejected_fraction: Fraction = Field(
        0.05, description="more rejected rows than this share stop the stage; below it they are counted and kept"
    )
    seed: Seed = Field(0, description="salt of the split's hash: another seed, other splits")

    @model_validator(mode="after")
    def _some_left_to_train_on(self) -> "ConvertParams":
        held_out = self.validation_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(f"validation_fraction + test_fraction must stay below 1, got {held_out:g}")
        return self


class TokenizeChoices(Section):
    """Conversations -> token pairs."""

    pair_format: Literal["glm2", "llama"] = Field(
        "glm2", description="order of a pair; glm2: [gMASK] sop A B </s>, as released; llama: <s> A B </s>"
    )
    template: Literal["auto", "chatglm2", "chatglm3"] = Field(
        "auto", description="prompt wording; auto = chatglm3 where the base is one, else chatglm2's [Round n]"
    )
    loss_on: Literal["last", "every"] = Field(
        "last", description="which answers of a conversation are supervised: the last one, or every one"
    )
    truncation: Literal["rounds", "left", "right", "drop"] = Field(
        "rounds",
        description="what is done with a prompt over max_source_length: rounds drops the oldest rounds and then the "
        "middle of the text, never the question; left and right cut tokens of that side; drop leaves the row out",
    )
    max_source_length: Count = Field(
        300, description="most tokens of [gMASK] sop and prompt; memory and time grow with it"
    )
    max_target_length: Count = Field(200, description="most tokens of an answer and its </s>; longer answers are cut")
    vocabulary_size: Annotated[int, Field(ge=300, le=64000)] = Field(
        2000, description="pieces of the tokenizer that is trained when model.base is null"
    )
    threads: Auto[Threads] = Field("auto", description="tokenizer threads; auto = all cores; never changes the result")


class TokenizeParams(TokenizeChoices):
    """The same, settled."""

    threads: Threads = 1
