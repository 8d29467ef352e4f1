"""Reads from a key's type annotation whether the key takes `auto` or null, and which other values it takes."""

import types
import typing
from typing import Any

from pydantic import BaseModel, Tag

from glm2core.params.section import AUTO


def is_section(annotation: Any) -> bool:
    """Whether the type is a section with keys of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def takes_auto(annotation: Any) -> bool:
    """Whether the key also takes `auto`."""
    return any(_is_auto(branch) for branch in _branches(annotation))


def takes_null(annotation: Any) -> bool:
    """Whether the key also takes null."""
    return type(None) in _branches(without_auto(annotation))


def without_auto(annotation: Any) -> Any:
    """Turn Auto[X] into X with its bounds; return other annotations unchanged."""
    if takes_auto(annotation):
        return next(branch for branch in _branches(annotation) if not _is_auto(branch))
    return annotation


def without_null(annotation: Any) -> Any:
    """Turn X | None, Auto[X] and Annotated[X, ...] into X."""
    annotation = without_auto(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return without_null(typing.get_args(annotation)[0])
    branches = _branches(annotation)
    return without_null(next(b for b in branches if b is not type(None))) if branches else annotation


def _branches(annotation: Any) -> tuple[Any, ...]:
    """The branches of a union; empty for other annotations."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _branches(typing.get_args(annotation)[0])
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else ()


def _is_auto(branch: Any) -> bool:
    return Tag(AUTO) in getattr(branch, "__metadata__", ())
