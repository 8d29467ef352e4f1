"""Sentences for wrong params: place, value, what is allowed, nearest name."""

import difflib
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

Location = tuple[str | int, ...]

_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "list_type": "must be a list, as in [a, b]",
    "too_short": "must have at least {min_length} entry",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
}
_LONGEST_VALUE = 80  # characters of a value that are shown


def messages(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """A sentence for each wrong key of `root`'s values."""
    return [_sentence(dict(detail), root) for detail in error.errors()]


def _sentence(error: dict[str, Any], root: type[BaseModel]) -> str:
    location: Location = error["loc"]
    place, value = _dotted(location) or "the file", error["input"]
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(location, value, root)
        case "missing":
            return f"{place} is missing. Add it; the params.yaml that came with the project shows how"
        case "literal_error":
            choices = _choices(_annotation(location, root))
            return f"{place} must be one of {', '.join(choices)}; got {_shown(value)}{_did_you_mean(value, choices)}"
        case "value_error":
            return f"{place}: {error['ctx']['error']}" if location else str(error["ctx"]["error"])
        case "invalid_key":
            return f"{_dotted(location[:-1]) or 'the file'} has a key that is not text: {_shown(value)}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{place} must hold the keys {', '.join(_keys(location, root))}; got {_shown(value)}"
        case kind:
            rule = _RULES[kind].format(**error.get("ctx", {})) if kind in _RULES else error["msg"]
            or_null = " or null" if type(None) in typing.get_args(_annotation(location, root)) else ""
            return f"{place} {rule}{or_null}; got {_shown(value)}{_quoted_number(kind, value)}"


def _unknown_key(location: Location, value: Any, root: type[BaseModel]) -> str:
    *parents, name = location
    siblings = _keys(tuple(parents), root)
    section = _dotted(tuple(parents))
    prefix = f"{section}." if section else ""
    elsewhere = [key for key in _all_keys(root) if key.split(".")[-1] == name]
    near = difflib.get_close_matches(str(name), siblings, n=1, cutoff=0.5)
    nearest = elsewhere or [prefix + key for key in near]
    hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
    where = f"keys of {section}" if section else "sections"
    return f"{_dotted(location)} is not a key, got it with {_shown(value)}{hint}; {where}: {', '.join(siblings)}"


def _did_you_mean(word: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _quoted_number(kind: str, value: Any) -> str:
    if kind in ("int_type", "float_type") and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        return " (text: write the number without quotes)"
    return ""


def _dotted(location: Location) -> str:
    """('convert', 'sources', 0, 'path') -> convert.sources[0].path, as `-S` takes it."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _shown(value: Any) -> str:
    """A value as YAML writes it, cut when long."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _choices(annotation: Any) -> list[str]:
    """Values of a Literal, null first where it is allowed."""
    choices = ["null"] if type(None) in typing.get_args(annotation) else []
    return choices + [str(choice) for choice in typing.get_args(_without_null(annotation))]


def _keys(location: Location, root: type[BaseModel]) -> list[str]:
    section = _without_null(_annotation(location, root))
    return list(section.model_fields) if _is_section(section) else []


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        inner = _without_null(field.annotation)
        keys += _all_keys(inner, f"{prefix}{name}.") if _is_section(inner) else [prefix + name]
    return keys


def _annotation(location: Location, root: type[BaseModel]) -> Any:
    """The annotation at a place in the sections: ('convert', 'sources', 0) -> Source."""
    current: Any = root
    for part in location:
        current = _without_null(current)
        items = typing.get_args(current)  # of a list or dict
        current = items[-1] if items else current.model_fields[str(part)].annotation
    return current


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _without_null(annotation: Any) -> Any:
    """X | None -> X, and Annotated[X, ...] -> X."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _without_null(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _without_null(next(arg for arg in typing.get_args(annotation) if arg is not type(None)))
    return annotation
