"""Templates of pages. They escape every text that is put into them."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import jinja2


def render(name: str, /, **values: Any) -> str:
    return _environment().get_template(name).render(**values)


def text(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
