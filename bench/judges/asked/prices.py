"""Prices of tokens: a dated file that the user can replace, then what the package genai-prices lists."""

from __future__ import annotations

import datetime
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from bench.config import AsList, Settings, user_path
from bench.machine import PACKAGE
from bench.text_files import BadFile, describe, printable, read_yaml

OWN_PRICES = PACKAGE / "judges" / "asked" / "prices.yaml"
OPENAI = "https://api.openai.com/v1"
Dollars = Annotated[float, Field(ge=0)]


class Price(Settings):
    """Prices in dollars per million tokens, for the models named in one row."""

    models: Annotated[tuple[str, ...], AsList] = Field(min_length=1)
    prompt: Dollars
    completion: Dollars
    batch: Annotated[float, Field(gt=0, le=1)] = 1.0  # Price factor for batch files.
    date: datetime.date | None  # The day the price was looked up; None for a package's list.
    source: str

    @property
    def as_of(self) -> str:
        """The day of the price, else its source."""
        return self.source if self.date is None else str(self.date)

    def dollars(self, prompt_tokens: int, completion_tokens: int, *, batch: bool = False) -> float:
        """Cost of the tokens in dollars."""
        full = (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6
        return full * (self.batch if batch else 1.0)


_ROWS = TypeAdapter(list[Price])


def read_prices(path: Path) -> tuple[Price, ...]:
    """The rows of a price file. Raises BadFile for any other file, or for a model named twice."""
    wanted = "judge.prices must be a file that lists prices: models, prompt and completion (dollars per million tokens), date, source"
    try:
        rows = tuple(_ROWS.validate_python(read_yaml(path)))
    except BadFile as error:
        raise BadFile(f"{wanted}, got {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BadFile(
            f"{wanted}, got {path}: {printable(place)}: {first['msg']}, got {describe(first['input'])}"
        ) from error
    if twice := [
        model for model, n in Counter(model for row in rows for model in row.models).items() if n > 1
    ]:
        raise BadFile(f"{path}: {printable(twice[0])} has more than one price; list each model once")
    return rows


def price_of(model: str, path: str | None, base_url: str | None = None) -> Price | None:
    """The price of a model by its exact name at an endpoint (None: OpenAI's); None if there is none.

    A file of the user stands alone. Without one, prices.yaml comes before genai-prices.
    """
    rows = read_prices(user_path(path) if path else OWN_PRICES)
    own = next((row for row in rows if model in row.models), None)
    return own if own is not None or path else _listed(model, base_url or OPENAI)


def _listed(model: str, base_url: str) -> Price | None:
    """The price that genai-prices lists for a model of the endpoint's provider; None if it lacks a side of it.

    It is the price of a short prompt, without the discount of a batch file. A server of one's own is no provider.
    """
    import genai_prices

    usage = genai_prices.Usage(input_tokens=1000, output_tokens=1000)
    try:
        listed = genai_prices.calc_price(usage, model, provider_api_url=base_url)
    except LookupError:
        return None
    if listed.model_price.input_mtok is None or listed.model_price.output_mtok is None:
        return None
    prompt, completion = (float(dollars * 1000) for dollars in (listed.input_price, listed.output_price))
    source = f"genai-prices {version('genai-prices')}, {listed.provider.id}"
    return Price(models=(model,), prompt=prompt, completion=completion, date=None, source=source)
