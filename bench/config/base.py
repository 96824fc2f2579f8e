"""Base record of all settings, its number types, and errors that concern several fields."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import cache
from itertools import pairwise
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from bench.config.names import Name as Name

Category = Literal["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # The range of numpy's generators.
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
AsList = Field(strict=False)  # Lets a tuple field take a list, as YAML has it.
Fraction = Annotated[float, Field(gt=0, le=1)]
FlipRate = Annotated[float, Field(ge=0, lt=0.5)]  # Share of labels that are flipped.


LABEL = re.compile(r"[A-Za-z][A-Za-z0-9]*")  # A jury's member or a mixture's source; part of other names.

Misfit = tuple[str, str]  # (dotted field of the record, problem)


def misfit(*misfits: Misfit) -> PydanticCustomError:
    """Return the error of a validator that compares several fields; the check of the command adds where each
    value comes from."""
    return PydanticCustomError(
        "misfit", "{text}", {"misfits": misfits, "text": "; ".join(text for _, text in misfits)}
    )


class LaterField:
    """Marks a settings field added after results existed; keys leave it out while it holds its default.

    `dropout: Annotated[float, LaterField()] = 0.0` keeps every key that was made before `dropout` was known.
    """


class Unkeyed:
    """Marks a settings field that reaches the stage and no key: it says how a request is made or served and
    changes no number."""


class Settings(BaseModel):
    """Base of every record that a user or a stage key sees: frozen, strict, without unknown fields. A field's
    docstring says its meaning in the help and in conf/ (`meanings`); no key holds it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


def meanings(record: type[BaseModel]) -> dict[str, str]:
    """The docstring of each field of a record and of its bases, on one line.

    Read from the source when asked: pydantic's `use_attribute_docstrings` would read it at every start.
    """
    texts: dict[str, str] = {}
    for base in reversed(record.__mro__):
        texts |= _docstrings(base.__module__).get(base.__name__, {}) if issubclass(base, Settings) else {}
    return texts


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """The docstrings of fields in a module, by class and field."""
    classes = ast.parse(inspect.getsource(sys.modules[module])).body
    return {
        node.name: {
            field.target.id: " ".join(text.value.value.split())
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in classes
        if isinstance(node, ast.ClassDef)
    }


K = TypeVar("K", bound=type[BaseModel])


def name_of(kind: type[BaseModel]) -> str:
    """The one value that a record's `name` field allows."""
    (name,) = get_args(kind.model_fields["name"].annotation)
    return str(name)


def by_name(*kinds: K) -> dict[str, K]:
    """The records by the value of their `name` field."""
    return {name_of(kind): kind for kind in kinds}
