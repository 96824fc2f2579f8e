"""What is asked beside the judge: whether a policy can still do what it could."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bench.config.base import AsList, Count, Settings, misfit

Task = Annotated[str, Field(pattern=r"^[^@\s]+(@\d+)?$")]  # a name, and its number of examples where not the task's own


class Forgetting(Settings):
    """Tasks of lm-evaluation-harness, asked of policies and start models."""

    name: Literal["lm_eval"]
    tasks: Annotated[tuple[Task, ...], AsList] = Field(min_length=1)
    include_path: str | None  # a folder of task files
    limit: Count | None  # documents of a task; None: all
    chat_template: bool
    batch_size: Count

    @model_validator(mode="after")
    def _once(self) -> Forgetting:
        names = [task.partition("@")[0] for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            text = f"tasks must name a task once, got {', '.join(twice)} twice, whose numbers would be called the same"
            raise misfit(("tasks", text))
        return self
