"""Tasks of lm-evaluation-harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness), run by its own code: what a policy still can.

The only file that speaks to lm_eval. A task is named as there, `NAME@SHOTS` where its own number of examples is not wanted. Own tasks
are YAML files of a folder, to which paths in them are relative. The model is loaded by us, adapter and quantisation included, in the
dtype in which it writes; lm_eval's HFLM asks it. Standard errors are lm_eval's, over documents.
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

RESAMPLES = 1000  # of the metrics whose standard error lm_eval bootstraps
INSTALL = "pip install -c constraints.txt -e '.[forgetting]'"


class Answered(NamedTuple):
    results: list[TaskResult]
    answers: list[TaskAnswer]


def by_shots(tasks: Iterable[str]) -> dict[int | None, list[str]]:
    """Names of tasks by the number of examples that is asked for; None: each task's own."""
    parted = (task.partition("@") for task in tasks)
    return grouped((int(shots) if shots else None, name) for name, _, shots in parted)


@contextlib.contextmanager
def _among(include: Path | None, names: Sequence[str]) -> Iterator[Any]:
    """lm_eval's task manager, in the folder of own tasks. Its thousands of own ones are looked through only where some are asked for."""
    from lm_eval.tasks import TaskManager

    with contextlib.chdir(include or Path.cwd()), _leaving_no_bytecode():
        own = TaskManager(include_path=str(include), include_defaults=False) if include else None
        yield own if own and set(names) <= set(own.all_subtasks) else TaskManager(include_path=str(include) if include else None)


@contextlib.contextmanager
def _leaving_no_bytecode() -> Iterator[None]:
    """Functions of tasks lie beside them: a compiled copy there would be a change of the folder that keys are made of."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


# Before anything is spent ---------------------------------------------------------------------------------------------


def faults(tasks: Sequence[str], include: Path | None) -> list[str]:
    """Why tasks cannot be asked: names that nobody knows, data that cannot be had. In a process of its own, which fetches the data."""
    told = json.dumps({"tasks": list(tasks), "include": str(include) if include else None})
    environment = os.environ | {"PYTHONPATH": python_path()}
    ask = [sys.executable, "-P", "-m", "bench.engines.lm_eval", told]
    done = subprocess.run(ask, capture_output=True, encoding="utf-8", env=environment, check=False, errors="replace")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        return [f"lm_eval cannot load its tasks: {last}"]
    return json.loads(done.stdout.splitlines()[-1])


def _faults(tasks: Sequence[str], include: Path | None) -> Iterator[str]:
    names = [name for names in by_shots(tasks).values() for name in names]
    with _among(include, names) as manager:
        for name in names:
            if name not in manager.task_index:
                near = difflib.get_close_matches(name, manager.all_tasks, 3)
                meant = f"did you mean {', '.join(near)}?" if near else "lm_eval ls tasks lists what is known"
                yield f"unknown task {name!r} (forgetting.tasks); {meant}"
                continue
            try:
                manager.load([name])
            except Exception as error:  # of datasets, the hub, or a task's own code
                why = secrets.excerpt(str(error), 300)
                way_out = "data of its own tasks come from the hub once: go where there is a network, or set forgetting.include_path"
                yield f"task {name} (forgetting.tasks) cannot be made, {type(error).__name__}: {why}; {way_out}"


def main(told: str) -> None:
    asked = json.loads(told)
    with contextlib.redirect_stdout(sys.stderr):
        found = list(_faults(asked["tasks"], Path(asked["include"]) if asked["include"] else None))
    print(json.dumps(found))


# Asking ---------------------------------------------------------------------------------------------------------------


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, include: Path | None) -> Answered:
    """What a model makes of the tasks, and of every document of them."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    results: list[TaskResult] = []
    answers: list[TaskAnswer] = []
    asked = by_shots(settings.tasks)
    with _among(include, [name for names in asked.values() for name in names]) as manager:
        asker = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
        for shots, names in asked.items():
            found: Any = lm_eval.simple_evaluate(
                model=asker,
                tasks=names,
                num_fewshot=shots,
                limit=settings.limit,
                task_manager=manager,
                apply_chat_template=settings.chat_template,
                fewshot_as_multiturn=settings.chat_template,
                bootstrap_iters=RESAMPLES,
            )
            parts = {part for group in found["group_subtasks"].values() for part in group}
            roots = [task for task in (*found["results"], *found["group_subtasks"]) if task not in parts]
            shown = {task for root in roots for task in _shown(root, found)}
            results += [row for task in found["results"] for row in _results(task, found, task in shown)]
            answers += [row for task, samples in found["samples"].items() for row in _answers(task, samples)]
    return Answered(results, answers)


def _shown(task: str, found: Mapping[str, Any]) -> Iterator[str]:
    """The task or group itself where it has numbers, else its parts."""
    if any(_metrics(found["results"].get(task, {}))):
        yield task
    else:
        for child in found["group_subtasks"].get(task, ()):
            yield from _shown(child, found)


def _metrics(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None, float | None]]:
    """(metric, filter, value, standard error) of a task, from keys like `acc,none` and `acc_stderr,none`; None: no finite number."""
    for key, value in numbers.items():
        metric, comma, how = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            error = numbers.get(f"{metric}_stderr,{how}")
            yield metric, how, _finite(value), _finite(error)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _results(task: str, found: Mapping[str, Any], shown: bool) -> Iterator[TaskResult]:
    numbers = found["results"][task]
    for metric, how, value, error in _metrics(numbers):
        yield TaskResult(
            task=task,
            metric=metric if how == "none" else f"{metric}_{how}",
            value=value,
            standard_error=error,
            n=int(numbers["sample_len"]),
            higher_is_better=found["higher_is_better"].get(task, {}).get(metric),
            shots=found["n-shot"].get(task),
            version=None if (version := found["versions"].get(task)) is None else str(version),
            harness=found["lm_eval_version"],
            asked=_asked(found["samples"].get(task, ())),
            shown=shown,
        )


def _asked(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """Digest of documents, prompts and right answers; None of a group."""
    hashes = sorted((sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]) for sample in samples)
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16] if hashes else None


def _answers(task: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[TaskAnswer]:
    for sample in samples:
        values = {name: value for name in sample["metrics"] if (value := _finite(sample.get(name))) is not None}
        yield TaskAnswer(task, int(sample["doc_id"]), sample["filter"], values)


if __name__ == "__main__":
    main(sys.argv[1])
