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
    """Generated long conversations, which ask many questions about one record, as in LongEval's `lines` and RULER."""

    conversations: Count = Field(description="how many conversations to generate")
    lines: list[Count] = Field(
        min_length=1,
        description="possible numbers of lines in a record; one of these numbers is drawn for each conversation; with "
        "the embedded tokenizer, a line takes about 22 tokens",
    )
    questions: Count = Field(description="number of questions (rounds) about each record")
    repeats: Fraction = Field(
        0.0, description="share of conversations whose record repeats some of its lines, which is easier to learn from"
    )
    hard_negatives: Fraction = Field(
        0.0,
        description="share of conversations in which many lines have words and digits in common, so that their keys "
        "are easy to confuse",
    )
    kinds: list[FactKind] = Field(
        ["lines"],
        min_length=1,
        description="kinds of facts; one or several of them are drawn for each record; facts of RULER's kinds are "
        "longer than lines, so a record holds fewer of them",
    )
    wording: Literal["other", "all"] = Field(
        "other",
        description="wording of the facts of RULER's kinds; other = only wordings that the evaluation does not use; "
        "all = the evaluation's wording as well",
    )
    seed: Seed = Field(0, description="seed of the generator; a different seed gives different records")


class AnalysisKinds(Section):
    """How often each kind of text-analysis row is drawn; only the ratios between these numbers matter."""

    extract: Share = Field(
        3.0, description="one question about one text, which asks for a name, date, amount, place or relation"
    )
    texts: Share = Field(2.0, description="one task about several texts")
    tasks: Share = Field(2.0, description="several questions about one text, in one conversation")
    judgement: Share = Field(
        2.0, description="a question about whether a claim is true; the answer has the parts EXPLAIN and CONCLUSION"
    )
    dialogue: Share = Field(1.0, description="a question about something that the user said several rounds earlier")

    @model_validator(mode="after")
    def _some(self) -> "AnalysisKinds":
        if not any(self.model_dump().values()):
            raise ValueError("all kinds are 0, so nothing can be drawn; set at least one kind above 0")
        return self


class GeneratedAnalysis(Section):
    """Short generated rows in English and Chinese, with questions about a text that contains the answers."""

    rows: NonNegative = Field(description="how many rows to generate for training; 0 = this source is off")
    held_out_rows: NonNegative = Field(
        120,
        description="how many held-out rows to generate, half of them for validation and half for test; they are about "
        "entities that appear in no training row",
    )
    chinese: Fraction = Field(0.5, description="share of rows in Chinese; the others are in English")
    kinds: AnalysisKinds = Field(AnalysisKinds(), description="how often each kind is drawn")
    seed: Seed = Field(0, description="seed of the generator; a different seed gives different rows")


class Source(Section):
    """One source of rows, which is a file, a glob, a folder of parquet parts, or a generator."""

    format: Literal["auto", "alpaca", "chatglm", "messages", "sharegpt", "lines", "analysis"] = Field(
        "auto",
        description="format of the rows; auto = detect the format and print it; rows in the formats lines and analysis "
        "are generated, not read",
    )
    path: FilePath | None = Field(
        None,
        description="file, glob, or folder of parquet parts, relative to the project's folder; null for generated rows",
    )
    columns: dict[str, str] = Field(
        {},
        description="maps standard column names to this file's names, as in {prompt: question, response: answer}; "
        "a mapped column is read only under its standard name",
    )
    encoding: Literal["gb18030"] | None = Field(
        None,
        description="encoding of a text file; null = detect whether it is UTF-8, UTF-16 or UTF-32; gb18030 includes "
        "GBK",
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
    held_out: bool = Field(
        True, description="whether some rows are held out for validation and test; false = all rows are for training"
    )
    weight: Annotated[float, Field(ge=0.01, le=100)] = Field(
        1.0,
        description="how often each row appears in an epoch; 2 = twice; 0.5 = in half of the epochs, drawn with "
        "train.seed",
    )
    generate: GeneratedLines | None = Field(
        None, description="what to generate if format is lines; must be null for all other formats"
    )
    analysis: GeneratedAnalysis | None = Field(
        None, description="what to generate if format is analysis; must be null for all other formats"
    )

    @property
    def is_generated(self) -> bool:
        """Whether the rows are generated, not read from a file."""
        return self.path is None

    @model_validator(mode="after")
    def _path_or_generate(self) -> "Source":
        if (self.generate is not None) != (self.format == "lines"):
            raise ValueError("`generate` is allowed only with `format: lines`, and `format: lines` needs `generate`")
        if (self.analysis is not None) != (self.format == "analysis"):
            raise ValueError(
                "`analysis` is allowed only with `format: analysis`, and `format: analysis` needs `analysis`"
            )
        if (self.path is None) != (self.format in ("lines", "analysis")):
            raise ValueError("path is needed for files, and must be null for the formats lines and analysis")
        return self

    @model_validator(mode="after")
    def _columns_rename(self) -> "Source":
        theirs = list(self.columns.values())
        if twice := [name for name in dict.fromkeys(theirs) if theirs.count(name) > 1]:
            raise ValueError(
                f"columns maps two names to {shown_names(twice[:1])}, but a column can have only one meaning"
            )
        return self


class ConvertParams(Section):
    """Turns raw files into conversations."""

    sources: list[Source] = Field(min_length=1, description="files, globs and generated rows to read, in this order")
    validation_fraction: Fraction = Field(
        0.05,
        description="share of prompts held out for validation during training; rows with the same prompt stay together",
    )
    test_fraction: Fraction = Field(
        0.05,
        description="share of prompts held out for the evaluate stage; together with validation_fraction, it must be "
        "less than 1",
    )
    max_rejected_fraction: Fraction = Field(
        0.05,
        description="the stage stops if more than this share of the rows in files is rejected; otherwise the rejected "
        "rows are listed",
    )
    seed: Seed = Field(0, description="seed of the hash that splits the rows; a different seed gives different splits")

    @model_validator(mode="after")
    def _some_left_to_train_on(self) -> "ConvertParams":
        held_out = self.validation_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(f"validation_fraction + test_fraction must be below 1, but the sum is {held_out:g}")
        return self


class TokenizeChoices(Section):
    """Turns conversations into token pairs."""

    pair_format: Literal["glm2", "llama"] = Field(
        "glm2",
        description="how prompt A and answer B are joined; glm2 = [gMASK] sop A B </s>, as in the released models; "
        "llama = <s> A B </s>",
    )
    template: Literal["auto", "chatglm2", "chatglm3"] = Field(
        "auto",
        description="wording of the prompt; auto = chatglm3 for a ChatGLM3 base, else chatglm2, which writes [Round n]",
    )
    loss_on: Literal["last", "every"] = Field(
        "last",
        description="which answers of a conversation count in the loss; last = only the last answer; every = all "
        "answers",
    )
    truncation: Literal["rounds", "left", "right", "drop"] = Field(
        "rounds",
        description="how to shorten a prompt that exceeds max_source_length; rounds = drop the oldest rounds, then the "
        "middle of the text, but never the question; left, right = drop tokens on that side; drop = drop the row",
    )
    max_source_length: Count = Field(
        300, description="maximum number of tokens in a prompt, including [gMASK] sop; memory and time grow with it"
    )
    max_target_length: Count = Field(
        200, description="maximum number of tokens in an answer, including </s>; longer answers are truncated"
    )
    vocabulary_size: Annotated[int, Field(ge=300, le=64000)] = Field(
        2000, description="number of pieces in the tokenizer, which is trained only if model.base is null"
    )
    threads: Auto[Threads] = Field(
        "auto", description="number of tokenizer threads, which does not affect the result; auto = all cores"
    )


class TokenizeParams(TokenizeChoices):
    """`TokenizeChoices`, with a value in place of every `auto`."""

    threads: Threads = 1
