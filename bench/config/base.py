"""What all settings records share: the base record, its number types, and how misfits are told."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from bench.config.names import Name as Name

Category = Literal["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy's generators take
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
AsList = Field(strict=False)  # a tuple that also takes the list that YAML writes
Fraction = Annotated[float, Field(gt=0, le=1)]
FlipRate = Annotated[float, Field(ge=0, lt=0.5)]  # share of labels that are turned round


Misfit = tuple[str, str]  # (a dotted field of the record, what is wrong with it)


def misfit(*found: Misfit) -> PydanticCustomError:
    """For validators that weigh several fields; the door adds where each comes from."""
    return PydanticCustomError("misfit", "{text}", {"found": found, "text": "; ".join(text for _, text in found)})


class LaterField:
    """Marks a settings field added after results existed: left out of keys while it holds its default.

    `dropout: Annotated[float, LaterField()] = 0.0` keeps every key that was made before `dropout` was known.
    """


class Unkeyed:
    """Marks a settings field that reaches the stage and no key: how something is asked or served, which changes no number."""


class Settings(BaseModel):
    """Base of every record that a user or a stage key sees: frozen, strict, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


K = TypeVar("K", bound=type[BaseModel])


def name_of(kind: type[BaseModel]) -> str:
    """The name that a record's `name` must be."""
    (name,) = get_args(kind.model_fields["name"].annotation)
    return str(name)


def by_name(*kinds: K) -> dict[str, K]:
    return {name_of(kind): kind for kind in kinds}
