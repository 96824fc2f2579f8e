"""What tokens cost: a dated file of prices, which the user can replace."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from bench.config import AsList, Settings

OWN_PRICES = Path(__file__).parent / "prices.yaml"
Dollars = Annotated[float, Field(ge=0)]


class Price(Settings):
    """Dollars per million tokens of the models that a row names."""

    models: Annotated[tuple[str, ...], AsList] = Field(min_length=1)
    prompt: Dollars
    completion: Dollars
    batch: Annotated[float, Field(gt=0, le=1)] = 1.0  # what a batch file costs of it
    date: datetime.date  # when it was looked up
    source: str

    def dollars(self, prompt_tokens: int, completion_tokens: int, *, batch: bool = False) -> float:
        full = (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6
        return full * (self.batch if batch else 1.0)


_ROWS = TypeAdapter(list[Price])


def read_prices(path: Path) -> tuple[Price, ...]:
    """The rows of a price file. Raises ValueError for one that is none."""
    try:
        return tuple(_ROWS.validate_python(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, ValidationError, OSError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())[:300]
        wanted = "a list of models, prompt, completion (dollars per million tokens), date and source"
        raise ValueError(f"judge.prices must be a file that holds {wanted}, got {path}: {first}") from error


def price_of(model: str, path: str | None) -> Price | None:
    """The price of a model by its exact name; None where the file does not name it."""
    rows = read_prices(Path(path).expanduser().absolute() if path else OWN_PRICES)
    return next((row for row in rows if model in row.models), None)
