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
    """Generated long conversations: a record, then many questions about it, as in LongEval's `lines` and RULER."""

    conversations: Count = Field(description="how many conversations to generate")
    lines: list[Count] = Field(
        min_length=1,
        description="possible numbers of lines in a record, one of which is drawn for each conversation; a line has "
        "about 22 tokens with the embedded tokenizer",
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
        description="kinds of facts, of which one or several are drawn for each record: lines, and RULER's kinds, "
        "whose facts are longer and therefore fewer",
    )
    wording: Literal["other", "all"] = Field(
        "other",
        description="wording of RULER's kinds; other = wordings that evaluation does not use; all = its wording too",
    )
    seed: Seed = Field(0, description="seed of the generator; another seed gives other records")


class AnalysisKinds(Section):
    """How often each kind of generated text analysis is drawn, relative to the sum of all kinds."""

    extract: Share = Field(3.0, description="one question about one text: a name, date, amount, place or relation")
    texts: Share = Field(2.0, description="one task about several texts")
    tasks: Share = Field(2.0, description="several questions about one text, in one conversation")
    judgement: Share = Field(2.0, description="whether a claim is true; the answer has EXPLAIN and CONCLUSION")
    dialogue: Share = Field(1.0, description="a question about something the user said several rounds before")

    @model_validator(mode="after")
    def _some(self) -> "AnalysisKinds":
        if not any(self.model_dump().values()):
            raise ValueError("all kinds are 0, so nothing can be drawn; give at least one kind a share")
        return self


class GeneratedAnalysis(Section):
    """Generated short rows of text analysis, whose answers are in the text; in English and Chinese."""

    rows: NonNegative = Field(description="how many rows to generate for training; 0 = this source is off")
    held_out_rows: NonNegative = Field(
        120,
        description="how many held-out rows to generate, about entities that no training row has: half of them for "
        "validation, half for test",
    )
    chinese: Fraction = Field(0.5, description="share of rows in Chinese; the others are in English")
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
        None, description="encoding of a text file; null = detect UTF-8, UTF-16 or UTF-32; gb18030 includes GBK"
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
        """Whether the rows are generated, not read from a file."""
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
    """From raw files to conversations."""

    sources: list[Source] = Field(min_length=1, description="what to read, in order: files, globs, generated lines")
    validation_fraction: Fraction = Field(
        0.05, description="share of prompts held out to validate during training; rows of one prompt stay together"
    )
    test_fraction: Fraction = Field(
        0.05,
        description="share of prompts held out for the evaluate stage; this and validation_fraction must add up to "
        "less than 1",
    )
    max_rejected_fraction: Fraction = Field(
        0.05, description="if a larger share of the rows in files is rejected, the stage stops; else they are listed"
    )
    seed: Seed = Field(0, description="salt of the split's hash: another seed gives other splits")

    @model_validator(mode="after")
    def _some_left_to_train_on(self) -> "ConvertParams":
        held_out = self.validation_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(f"validation_fraction + test_fraction must stay below 1, got {held_out:g}")
        return self


class TokenizeChoices(Section):
    """From conversations to token pairs."""

    pair_format: Literal["glm2", "llama"] = Field(
        "glm2",
        description="order of prompt A and answer B; glm2: [gMASK] sop A B </s>, as in released models; llama: "
        "<s> A B </s>",
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
        "of the text, never the question; left and right remove tokens on that side; drop removes the row",
    )
    max_source_length: Count = Field(
        300, description="maximum tokens of a prompt, including [gMASK] sop; memory and time grow with it"
    )
    max_target_length: Count = Field(
        200, description="maximum tokens of an answer, including </s>; longer answers are truncated"
    )
    vocabulary_size: Annotated[int, Field(ge=300, le=64000)] = Field(
        2000, description="number of pieces in the tokenizer, which is trained only if model.base is null"
    )
    threads: Auto[Threads] = Field("auto", description="tokenizer threads; auto = all cores; no effect on the result")


class TokenizeParams(TokenizeChoices):
    """`TokenizeChoices` with every `auto` settled."""

    threads: Threads = 1
