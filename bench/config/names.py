"""The pattern of all names: of sweeps, models, data, methods, judges, providers. A name is part of a folder's
name, and of no key."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

LONGEST_NAME = 100  # Characters. A folder's name holds several names, and file systems allow 255 bytes.
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{LONGEST_NAME - 1}}}")
NAME_WORDS = (
    f"a name of letters, digits, dots, +, - and _ (the first a letter or digit, {LONGEST_NAME} at most)"
)

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


def is_name(text: object) -> bool:
    """Whether a text is a name."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None


def as_name(text: str) -> str:
    """A name made from any text, such as a model's folder; other characters become dashes."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).lstrip("._+-")[:LONGEST_NAME] or "local"
