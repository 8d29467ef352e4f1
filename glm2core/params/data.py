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
        description="lines in a record, about 22 tokens each with the embedded tokenizer; each conversation gets one "
        "of these counts",
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
        description="kinds of facts, one or several of them drawn for each record: lines, and RULER's kinds, whose "
        "facts are longer and therefore fewer",
    )
    wording: Literal["other", "all"] = Field(
        "other", description="of RULER's kinds: other = never the wording of evaluation, all = that wording as well"
    )
    seed: Seed = Field(0, description="seed of the generator; another seed gives other records")


class AnalysisKinds(Section):
    """How often each kind of generated text analysis is drawn; shares of their sum."""

    extract: Share = Field(3.0, description="one text, one question: a name, date, amount, place or relation")
    texts: Share = Field(2.0, description="several texts, one task over all of them")
    tasks: Share = Field(2.0, description="several questions about one text, in one conversation")
    judgement: Share = Field(2.0, description="whether a claim is true, with EXPLAIN and CONCLUSION")
    dialogue: Share = Field(1.0, description="a user asks about something they said rounds ago")

    @model_validator(mode="after")
    def _some(self) -> "AnalysisKinds":
        if not any(self.model_dump().values()):
            raise ValueError("all kinds are 0, so nothing can be drawn; give at least one kind a share")
        return self


class GeneratedAnalysis(Section):
    """Short rows of text analysis with the answers in the text, in English and Chinese."""

    rows: NonNegative = Field(description="how many rows to generate for training; 0 = this source is off")
    held_out_rows: NonNegative = Field(
        120, description="rows about entities that no training row has, half for validation and half for test"
    )
    chinese: Fraction = Field(0.5, description="share of the rows in Chinese; the others are English")
    kinds: AnalysisKinds = Field(AnalysisKinds(), description="how often each kind is drawn")
    seed: Seed = Field(0, description="seed of the generator; another seed gives other rows")


class Source(Section):
    """A file, a glob, a folder of parquet parts, or generated conversations."""

    format: Literal["auto", "alpaca", "chatglm", "messages", "sharegpt", "lines", "analysis"] = Field(
        "auto", description="format of the rows; auto detects and prints it; lines and analysis are generated"
    )
    path: FilePath | None = Field(
        None,
        description="file, glob, or folder of parquet parts, relative to the project's folder; null for generated rows",
    )
    columns: dict[str, str] = Field(
        {},
        description="standard column name -> its name in this file, as in {prompt: question, response: answer}; "
        "a mapped column is read only under its standard name",
    )
    encoding: Literal["gb18030"] | None = Field(
        None, description="encoding of a text file; null = UTF-8, UTF-16 or UTF-32, detected; gb18030 includes GBK"
    )
    limit: Count | None = Field(None, description="take only the first N rows; null = all")
    max_source_length: Count | None = Field(
        None, description="overrides tokenize.max_source_length for this source; null = no override"
    )
    max_target_length: Count | None = Field(
        None, description="overrides tokenize.max_target_length for this source; null = no override"
    )
    loss_on: Literal["last", "every"] | None = Field(
        None, description="overrides tokenize.loss_on for this source; null = no override"
    )
    held_out: bool = Field(True, description="false: all rows are trained on, none is held out")
    weight: Annotated[float, Field(ge=0.01, le=100)] = Field(
        1.0,
        description="how often each row is in an epoch: 2 = twice, 0.5 = in half of the epochs, drawn by train.seed",
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
            raise ValueError(f"columns maps two names to {shown_names(twice[:1])}; a column has one meaning")
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
        0.05, description="a higher share of rejected rows stops the stage; below it they are counted and kept"
    )
    seed: Seed = Field(0, description="salt of the split's hash: another seed gives other splits")

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
        "auto", description="prompt wording; auto = chatglm3 for a ChatGLM3 base, else chatglm2's [Round n]"
    )
    loss_on: Literal["last", "every"] = Field(
        "last", description="which answers of a conversation are supervised: the last one, or every one"
    )
    truncation: Literal["rounds", "left", "right", "drop"] = Field(
        "rounds",
        description="how to shorten a prompt over max_source_length: rounds drops the oldest rounds, then the middle "
        "of the text, never the question; left and right cut tokens on that side; drop removes the row",
    )
    max_source_length: Count = Field(
        300, description="maximum tokens of [gMASK] sop and prompt; memory and time grow with it"
    )
    max_target_length: Count = Field(200, description="maximum tokens of an answer and its </s>; longer ones are cut")
    vocabulary_size: Annotated[int, Field(ge=300, le=64000)] = Field(
        2000, description="pieces of the tokenizer trained when model.base is null"
    )
    threads: Auto[Threads] = Field("auto", description="tokenizer threads; auto = all cores; no effect on the result")


class TokenizeParams(TokenizeChoices):
    """The same, settled."""

    threads: Threads = 1
