"""What is asked beside the judge: whether a policy can still do what it could."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bench.config.base import AsList, Count, Settings

Task = Annotated[str, Field(pattern=r"^[^@\s]+(@\d+)?$")]  # a name, and its number of examples where not the task's own


class Forgetting(Settings):
    """Tasks of lm-evaluation-harness, asked of policies and start models."""

    name: Literal["lm_eval"]
    tasks: Annotated[tuple[Task, ...], AsList] = Field(min_length=1)
    include_path: str | None  # a folder of task files
    limit: Count | None  # documents of a task; None: all
    chat_template: bool
    batch_size: Count
