"""Error messages about wrong params, which state the key, the value, what is allowed, and the nearest name."""

import difflib
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from glm2core.errors import printable, shown_names
from glm2core.params.annotations import is_section, takes_auto, takes_null, without_null
from glm2core.params.section import AUTO, VALUE, Section

Location = tuple[str | int, ...]

_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_unicode": "must be text that UTF-8 can hold",
    "string_pattern_mismatch": "must be of the pattern {pattern}",
    "none_required": "must be null",
    "multiple_of": "must be a multiple of {multiple_of:g}",
    "list_type": "must be a list, as in [a, b]",
    "too_short": "must have at least {min_length} entry",
    "greater_than": "must be above {gt:,.10g}",
    "greater_than_equal": "must be at least {ge:,.10g}",
    "less_than": "must be below {lt:,.10g}",
    "less_than_equal": "must be at most {le:,.10g}",
}
_LONGEST_VALUE = 80  # characters of a value that are shown
_LONGEST_WORD = 200  # characters of a name or a value that are compared with what is known
_LONGEST_SENTENCE = 600
_MOST_SENTENCES = 20


def messages(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One message for each wrong key in the values for `root`; if many keys are wrong, only for the first ones."""
    wrong = error.errors()
    sentences = [_cut(_sentence(dict(detail), root), _LONGEST_SENTENCE) for detail in wrong[:_MOST_SENTENCES]]
    more = len(wrong) - len(sentences)
    return [*sentences, f"and {more:,} more of this kind"] if more else sentences


def _sentence(error: dict[str, Any], root: type[BaseModel]) -> str:
    location: Location = tuple(part for part in error["loc"] if part != VALUE)
    place, value = _dotted(location) or "the file", error["input"]
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(location, value, root)
        case "missing":
            hint = "; the params.yaml that came with the project shows how" if issubclass(root, Section) else ""
            return f"{place} is missing. Add it{hint}"
        case "literal_error":
            choices = _choices(_annotation(location, root)) or [error["ctx"]["expected"]]
            hint = _null_is_not_auto(value, location, root) or _did_you_mean(value, choices)
            return f"{place} must be one of {', '.join(choices)}; got {_shown(value)}{hint}"
        case "value_error":
            return f"{place}: {error['ctx']['error']}" if location else str(error["ctx"]["error"])
        case "invalid_key":
            return f"{_dotted(location[:-1]) or 'the file'} has a key that is not text: {_shown(value)}"
        case "model_type" | "dict_type" | "dataclass_type" | "model_attributes_type":
            keys = _keys(location, root)
            what = f"the keys {', '.join(keys)}" if keys else "names and texts, as in {a: b}"
            return f"{place} must hold {what}; got {_shown(value)}"
        case kind:
            rule = _RULES[kind].format(**error.get("ctx", {})) if kind in _RULES else error["msg"]
            annotation = _annotation(location, root)
            also = (" or auto" if takes_auto(annotation) else "") + (" or null" if takes_null(annotation) else "")
            hint = _null_is_not_auto(value, location, root) or _quoted_number(kind, value)
            return f"{place} {rule}{also}; got {_shown(value)}{hint}"


def _unknown_key(location: Location, value: Any, root: type[BaseModel]) -> str:
    *parents, name = location
    siblings = _keys(tuple(parents), root)
    section = _dotted(tuple(parents))
    prefix = f"{section}." if section else ""
    elsewhere = [key for key in _all_keys(root) if key.split(".")[-1] == name]
    near = difflib.get_close_matches(str(name)[:_LONGEST_WORD], siblings, n=1, cutoff=0.5)
    nearest = elsewhere or [prefix + key for key in near]
    hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
    where = f"keys of {section}" if section else "sections"
    return f"{_dotted(location)} is not a key; got {_shown(value)}{hint}; {where}: {', '.join(siblings)}"


def _did_you_mean(word: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5) if _is_short(word) else []
    return f" (did you mean '{near[0]}'?)" if near else ""


def _is_short(word: Any) -> bool:
    return isinstance(word, str) and len(word) <= _LONGEST_WORD


def _null_is_not_auto(value: Any, location: Location, root: type[BaseModel]) -> str:
    """Params files of earlier versions use null where `auto` is needed now."""
    return " (null means none: write auto)" if value is None and takes_auto(_annotation(location, root)) else ""


def _quoted_number(kind: str, value: Any) -> str:
    if kind in ("int_type", "float_type") and _is_short(value):
        try:
            float(value)
        except ValueError:
            return ""
        return " (text: write the number without quotes)"
    return ""


def _dotted(location: Location) -> str:
    """('convert', 'sources', 0, 'path') -> convert.sources[0].path, as `-S` takes it."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{shown_names([part])}" for part in location)
    return "".join(parts).removeprefix(".")


def _shown(value: Any) -> str:
    """A value as YAML writes it, truncated if it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits, which Python does not write out
        return "a number of thousands of digits"
    return _cut(printable(text), _LONGEST_VALUE)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _choices(annotation: Any) -> list[str]:
    """Values of a Literal; auto and null first, if allowed."""
    choices = ([AUTO] if takes_auto(annotation) else []) + (["null"] if takes_null(annotation) else [])
    return choices + [str(choice) for choice in typing.get_args(without_null(annotation))]


def _keys(location: Location, root: type[BaseModel]) -> list[str]:
    section = without_null(_annotation(location, root))
    return list(section.model_fields) if is_section(section) else []


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        inner = without_null(field.annotation)
        keys += _all_keys(inner, f"{prefix}{name}.") if is_section(inner) else [prefix + name]
    return keys


def _annotation(location: Location, root: type[BaseModel]) -> Any:
    """The annotation at a location in the sections: ('convert', 'sources', 0) -> Source; None if there is none."""
    current: Any = root
    for part in location:
        current = without_null(current)
        items = typing.get_args(current)  # of a list or dict
        fields = getattr(current, "model_fields", {})
        if not items and part not in fields:  # a value of another kind of type, or a key by its other name
            return None
        current = items[-1] if items else fields[str(part)].annotation
    return current
