"""`python -m glm2core parameters`: prints the reference of params.yaml, generated from the types that check it."""

import argparse
import json
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from glm2core.params import Params, load_params
from glm2core.params.annotations import is_section, takes_auto, takes_null, without_auto, without_null
from glm2core.params.section import AUTO

_LINE = 120
_KEY = re.compile(r"(?P<head> *(?P<name>[a-z_0-9]+):)(?P<value>( [^#\s][^#]*?)?)\s*(#.*)?$")
_LONGEST = 60  # characters of a default that a table cell shows
_HEAD = """# Parameters

This page lists every key of [params.yaml](../params.yaml). `python -m glm2core parameters` generates it from the types
that check the file. The default is the value in the params.yaml that comes with the project. Keep every key in the
file, because a missing key takes the code's default, which may be a different value.

To change a key for one experiment, run `dvc exp run -S section.key=value`. Values are YAML, so lists are written with
brackets: `-S 'evaluate.retrieval.lengths=[512, 1024]'`. A bare `512,1024` makes two experiments, and works only with
`--queue`. If a key, type, value or combination is wrong, every stage stops at once with an error message that names the
mistake. DVC itself refuses a key that is not in params.yaml (`Key 'methd' is not in struct`). If you add the `+` that
DVC suggests (`-S +train.methd=lora`), the stage's error message names the nearest key. Then `git checkout params.yaml`
removes the wrong key again.
"""
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def run(arguments: argparse.Namespace) -> None:
    """Print the reference, with the values in `arguments.params` as defaults; or print that file with updated comments.

    Raises:
        UserError: the params file can't be read or is wrong.
    """
    load_params(arguments.params)
    print((commented if arguments.comments else reference)(arguments.params), end="")


def reference(params_file: Path) -> str:
    """All sections as Markdown tables."""
    values = YAML(typ="safe", pure=True).load(params_file.read_text(encoding="utf-8"))
    return _HEAD + "".join(_section(name, field, values[name]) for name, field in Params.model_fields.items())


def commented(params_file: Path) -> str:
    """The text of a params file, with each key's description as a comment.

    A long comment goes above its key. The lines of sections, the entries of `sources`, and the comments that are
    not indented stay unchanged.
    """
    lines: list[str] = []
    above: list[str] = []  # comment lines that may be an old description
    parents: list[str] = []
    entries_below = sys.maxsize  # lines indented deeper than this are a list's entries
    for line in params_file.read_text(encoding="utf-8").splitlines():
        depth = len(line) - len(line.lstrip())
        key = _KEY.match(line)
        if key and depth <= entries_below:
            parents = [*parents[: depth // 2], key["name"]]
            field = _field(parents)
            entries_below = sys.maxsize if key["value"] else depth
            if is_section(field.annotation):
                entries_below = sys.maxsize
                lines += [*above, line]
            else:
                lines += _with_comment(f"{key['head']}{key['value']}", field, depth)
            above = []
        elif depth and depth <= entries_below and line.lstrip().startswith("#"):
            above.append(line)
        else:
            lines += [*above, line]
            above = []
    return "\n".join([*lines, *above]) + "\n"


def _field(parents: list[str]) -> FieldInfo:
    fields = Params.model_fields
    for name in parents[:-1]:
        fields = typing.cast("type[BaseModel]", fields[name].annotation).model_fields
    return fields[parents[-1]]


def _with_comment(entry: str, field: FieldInfo, depth: int) -> list[str]:
    kind, allowed = _described(field.annotation, field.metadata)
    choices = allowed.replace("`", "").replace(", ", " | ") + ": " if kind == "choice" else ""
    comment = f"# {choices}{field.description}"
    line = f"{entry} {comment}"
    if len(line) <= _LINE:
        return [line]
    indent = " " * depth
    return [*textwrap.wrap(comment, _LINE, initial_indent=indent, subsequent_indent=f"{indent}# "), entry]


def _section(name: str, field: FieldInfo, values: Mapping[str, Any]) -> str:
    section = typing.cast("type[BaseModel]", field.annotation)
    text = f"\n## {name}\n{_summary(section)}\n\n" + _table(_rows(section, f"{name}.", values))
    for place, entry in _entries(section, name):
        text += f"\n### Within `{place}`\n{_summary(entry)}\n\n" + _table(_rows(entry, "", None))
    return text


def _entries(section: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """(place, section) for each section that is an entry of a list or may be null."""
    for name, field in section.model_fields.items():
        inner = without_null(field.annotation)
        arguments = typing.get_args(inner)
        entry: Any = arguments[0] if typing.get_origin(inner) is list else inner
        if is_section(entry) and entry is not field.annotation:
            yield f"{place}.{name}", entry
            yield from _entries(entry, f"{place}.{name}")


def _rows(section: type[BaseModel], prefix: str, values: Mapping[str, Any] | None) -> Iterator[tuple[str, ...]]:
    """(key, type, allowed, default, meaning) of each leaf; without `values`, the default is the code's default."""
    for name, field in section.model_fields.items():
        if is_section(field.annotation):
            inner = None if values is None else values[name]
            yield from _rows(typing.cast("type[BaseModel]", field.annotation), f"{prefix}{name}.", inner)
            continue
        default = _code_default(field) if values is None else _cell(values[name])
        kind, allowed = _described(field.annotation, field.metadata)
        meaning = str(field.description).replace("<", "&lt;")  # </s> would be taken for HTML
        yield f"`{prefix}{name}`", kind, allowed, default, meaning


def _described(annotation: Any, metadata: list[Any]) -> tuple[str, str]:
    """The name of the type, and the allowed values."""
    words = ([AUTO] if takes_auto(annotation) else []) + (["null"] if takes_null(annotation) else [])
    also = "".join(f" or {word}" for word in words)
    metadata = [*metadata, *_bounds(annotation)]
    annotation = without_null(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    bounds = ", ".join(filter(None, map(_bound, metadata)))
    if origin is typing.Literal:
        choices = [*words, *map(str, arguments)]
        return "choice", ", ".join(f"`{choice}`" for choice in choices)
    if origin is list:
        kind, allowed = _described(arguments[0], [])
        return f"list ({kind}){also}", ", ".join(filter(None, [bounds, allowed and f"each {allowed}"]))
    if origin is dict:
        return "keys and texts", bounds
    return _NAMES.get(annotation, "keys, see below") + also, bounds


def _bounds(annotation: Any) -> Iterator[Any]:
    """The bounds that Annotated sets for the values, also for those of a type that allows `auto` or null."""
    annotation = without_auto(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *found = typing.get_args(annotation)
        yield from (bound for item in found for bound in getattr(item, "metadata", [item]))
    if typing.get_origin(annotation) is not list:
        for branch in typing.get_args(annotation):
            yield from _bounds(branch)


def _bound(bound: Any) -> str:
    match bound:
        case annotated_types.Ge(ge):
            return f"{ge:,.10g} or more"
        case annotated_types.Gt(gt):
            return f"above {gt:,.10g}"
        case annotated_types.Le(le):
            return f"at most {le:,.10g}"
        case annotated_types.Lt(lt):
            return f"below {lt:,.10g}"
        case annotated_types.MinLen(least):
            return f"at least {least}" if least > 1 else "not empty"
    return ""


def _code_default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _cell(field.get_default())


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= _LONGEST else f"{len(value)} entries, see params.yaml"


def _table(rows: Iterator[tuple[str, ...]]) -> str:
    head = "| key | type | allowed | default | meaning |\n|---|---|---|---|---|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _summary(section: type[BaseModel]) -> str:
    return str(section.__doc__).strip().splitlines()[0]
