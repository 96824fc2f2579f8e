"""Tasks of a policy's lost abilities: can it still do the start model's tasks?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bench.config.base import AsList, Count, Settings, misfit

Task = Annotated[
    str, Field(pattern=r"^[^@\s]+(@\d+)?$")
]  # A name, with @SHOTS for another number of examples than the task's own.


class Forgetting(Settings):
    """Tasks of lm-evaluation-harness, for policies and start models."""

    name: Literal["lm_eval"]
    tasks: Annotated[tuple[Task, ...], AsList] = Field(min_length=1)
    """Names of tasks, groups or tags of lm-evaluation-harness, with @SHOTS to set the number of examples. The
    default is the Open LLM Leaderboard's first six."""
    include_path: str | None
    """Folder of your own task files (YAML); null: none. Paths in them are relative to it, and its content is
    part of the keys."""
    limit: Count | None
    """Largest number of documents of each task; null: all."""
    chat_template: bool
    """Whether to ask in the model's chat template, with examples as earlier turns."""
    batch_size: Count
    """Requests in a batch of lm-evaluation-harness."""

    @model_validator(mode="after")
    def _names_each_task_once(self) -> Forgetting:
        """Refuse a task that is named twice."""
        names = [task.partition("@")[0] for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            text = f"tasks must name a task once, got {', '.join(twice)} twice; their numbers would have the same name"
            raise misfit(("tasks", text))
        return self
