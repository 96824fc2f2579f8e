"""Tasks of lm-evaluation-harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness), run by its code
to measure forgetting.

This is the only file that imports lm_eval. Tasks have lm_eval's names; `NAME@SHOTS` sets another number of
examples than the task's own. The user's own tasks are YAML files of a folder, and paths in them are relative
to it. We load the model, with adapter and quantisation, in the dtype in which it writes; lm_eval's HFLM runs
it. Standard errors are lm_eval's, over documents.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import secrets
from bench.machine import python_path
from bench.records import TaskAnswer, TaskResult, grouped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bench.store.stage_settings import TaskSettings

RESAMPLES = 1000  # Bootstrap samples, for metrics whose standard error lm_eval bootstraps.
INSTALL = "pip install -c constraints.txt -e '.[forgetting]'"


class Evaluation(NamedTuple):
    """Results of a model on tasks, and on every document of them."""

    results: list[TaskResult]
    answers: list[TaskAnswer]


def by_shots(tasks: Iterable[str]) -> dict[int | None, list[str]]:
    """Task names grouped by number of examples; None stands for each task's own number."""
    parted = (task.partition("@") for task in tasks)
    return grouped((int(shots) if shots else None, name) for name, _, shots in parted)


@contextlib.contextmanager
def _task_manager(include: Path | None, names: Sequence[str]) -> Iterator[Any]:
    """lm_eval's task manager, with the working directory set to the folder of the user's tasks.

    lm_eval's own tasks, which are thousands, are indexed only if `names` contains some of them.
    """
    from lm_eval.tasks import TaskManager

    with contextlib.chdir(include or Path.cwd()), _leaving_no_bytecode():
        own = TaskManager(include_path=str(include), include_defaults=False) if include else None
        yield (
            own
            if own and set(names) <= set(own.all_subtasks)
            else TaskManager(include_path=str(include) if include else None)
        )


@contextlib.contextmanager
def _leaving_no_bytecode() -> Iterator[None]:
    """Keep Python from writing compiled files.

    The folder of the user's tasks may hold Python functions. A compiled copy there would change the folder,
    and with it the keys.
    """
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


# Before anything is spent ---------------------------------------------------------------------------------------------


def faults(tasks: Sequence[str], include: Path | None) -> list[str]:
    """Reasons why tasks cannot run: unknown names, and data that cannot be fetched; empty if all can.

    A process of its own loads the tasks and fetches their data.
    """
    request = json.dumps({"tasks": list(tasks), "include": str(include) if include else None})
    environment = os.environ | {"PYTHONPATH": python_path()}
    command = [sys.executable, "-P", "-m", "bench.engines.lm_eval", request]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, check=False, errors="replace"
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"its process ended with exit code {done.returncode}"])[
            -1
        ]
        return [f"lm_eval cannot load its tasks (forgetting.tasks): {last}"]
    return json.loads(done.stdout.splitlines()[-1])


def _faults(tasks: Sequence[str], include: Path | None) -> Iterator[str]:
    names = [name for names in by_shots(tasks).values() for name in names]
    with _task_manager(include, names) as manager:
        for name in names:
            if name not in manager.task_index:
                near = difflib.get_close_matches(name, manager.all_tasks, 3)
                meant = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists all"
                yield f"unknown task {name!r} (forgetting.tasks); {meant}"
                continue
            try:
                manager.load([name])
            except Exception as error:  # Errors of datasets, of the hub, or of a task's own code.
                why = secrets.excerpt(str(error), 300)
                way_out = "The data of lm_eval's tasks come from the hub the first time: connect to it once, or set "
                way_out += "forgetting.include_path."
                yield f"task {name} (forgetting.tasks) cannot be loaded, {type(error).__name__}: {why}. {way_out}"


def main(request: str) -> None:
    """Print the faults of the tasks in a JSON request, as a JSON list."""
    asks = json.loads(request)
    with contextlib.redirect_stdout(sys.stderr):
        problems = list(_faults(asks["tasks"], Path(asks["include"]) if asks["include"] else None))
    print(json.dumps(problems))


# Running tasks --------------------------------------------------------------------------------------------------------


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, include: Path | None
) -> Evaluation:
    """Run the tasks with a model. `include`: folder of the user's own tasks."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    results: list[TaskResult] = []
    answers: list[TaskAnswer] = []
    groups = by_shots(settings.tasks)
    with _task_manager(include, [name for names in groups.values() for name in names]) as manager:
        harness_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
        for shots, names in groups.items():
            output: Any = lm_eval.simple_evaluate(
                model=harness_model,
                tasks=names,
                num_fewshot=shots,
                limit=settings.limit,
                task_manager=manager,
                apply_chat_template=settings.chat_template,
                fewshot_as_multiturn=settings.chat_template,
                bootstrap_iters=RESAMPLES,
            )
            parts = {part for group in output["group_subtasks"].values() for part in group}
            roots = [task for task in (*output["results"], *output["group_subtasks"]) if task not in parts]
            shown = {task for root in roots for task in _shown(root, output)}
            results += [row for task in output["results"] for row in _results(task, output, task in shown)]
            answers += [row for task, samples in output["samples"].items() for row in _answers(task, samples)]
    return Evaluation(results, answers)


def _shown(task: str, output: Mapping[str, Any]) -> Iterator[str]:
    """The task or group itself if it has numbers, else its parts."""
    if any(_metrics(output["results"].get(task, {}))):
        yield task
    else:
        for child in output["group_subtasks"].get(task, ()):
            yield from _shown(child, output)


def _metrics(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None, float | None]]:
    """(metric, filter, value, standard error) of a task, from keys like `acc,none` and `acc_stderr,none`.

    A value or error is None if it is no finite number.
    """
    for key, value in numbers.items():
        metric, comma, how = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            error = numbers.get(f"{metric}_stderr,{how}")
            yield metric, how, _finite(value), _finite(error)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _results(task: str, output: Mapping[str, Any], shown: bool) -> Iterator[TaskResult]:
    numbers = output["results"][task]
    for metric, how, value, error in _metrics(numbers):
        yield TaskResult(
            task=task,
            metric=metric if how == "none" else f"{metric}_{how}",
            value=value,
            standard_error=error,
            n=int(numbers["sample_len"]),
            higher_is_better=output["higher_is_better"].get(task, {}).get(metric),
            shots=output["n-shot"].get(task),
            version=None if (version := output["versions"].get(task)) is None else str(version),
            harness=output["lm_eval_version"],
            asked=_questions_digest(output["samples"].get(task, ())),
            shown=shown,
        )


def _questions_digest(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """Digest of a task's documents, prompts and right answers; None for a group of tasks."""
    hashes = sorted((sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]) for sample in samples)
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16] if hashes else None


def _answers(task: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[TaskAnswer]:
    for sample in samples:
        values = {
            name: value for name in sample["metrics"] if (value := _finite(sample.get(name))) is not None
        }
        yield TaskAnswer(task, int(sample["doc_id"]), sample["filter"], values)


if __name__ == "__main__":
    main(sys.argv[1])
