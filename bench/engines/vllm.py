"""vLLM as an engine: one process a worker, kept over the stages and cells of a sweep, into which each policy's weights are loaded.

A running engine takes weights of its own architecture only: another config.json, dtype or argument, or any error, means a new process.
On a GPU it gives its memory back between stages. Sampled completions have a seed each, of the stage's seed and the prompt's place.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import secrets
from bench.config import Decoding, Serving
from bench.engines.base import DrawnCompletion, Progress, Vocabulary, silent
from bench.engines.vllm_server import ENVIRONMENT, HAS_GPU
from bench.models.hub import read_config
from bench.models.model_config import ADAPTER, check_no_adapter
from bench.models.tokenize import Ids, check_rendering, model_folder
from bench.store.keys import hash_key, tree_stamp
from bench.store.stage_run import AFTER_STAGE, ENGINE_VERSIONS
from bench.text_files import whole_number

CHILD = Path(__file__).with_name("vllm_child.py")
NEVER = -100.0  # added to the logits of tokens that are not to be written
STOP_S = 15.0
LOG_TAIL = 6000  # characters of its log that go to a stage's log when it fails
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM keeps room for
OF_NO_ARCHITECTURE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "control_tokens")


class VllmFailed(RuntimeError):
    """What the engine's process said before it was ended; the next stage starts another one."""


class Child:
    """The process. Requests are answered one after another."""

    def __init__(self, serving: Serving):
        out, answers = os.pipe()
        self.log = Path(tempfile.mkstemp(prefix="bench-vllm-", suffix=".log")[1])
        # Left to the user where they are set already. One process where one device is asked for: it starts faster and ends cleanly.
        one = {} if serving.tensor_parallel_size > 1 else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        environment = {**ENVIRONMENT, **one, "VLLM_LOGGING_LEVEL": "WARNING", **os.environ}
        if serving.python is not None:
            environment.pop("PYTHONPATH", None)  # of this environment, not of that one
        line = [serving.python or sys.executable, "-P", str(CHILD), str(os.getpid()), str(answers)]
        log, self._logging = secrets.pipe_into(self.log)
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[answers], env=environment, encoding="utf-8", bufsize=1
        )
        os.close(answers)
        os.close(log)
        self._answers = os.fdopen(out, encoding="utf-8")

    def ask(self, do: str, progress: Progress = silent, **request: Any) -> dict[str, Any]:
        """Raises VllmFailed, with the end of the process's log on standard error."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        for line in self._answers:
            answer: dict[str, Any] = json.loads(line)
            if "done" in answer:
                progress(answer["done"], answer["total"])
            elif answer["ok"]:
                return answer
            else:
                break
        else:
            answer = {"error": f"it ended with exit code {self.process.wait(STOP_S)}"}
        self._end()
        print(self.log.read_text("utf-8", "replace")[-LOG_TAIL:], file=sys.stderr)
        self.log.unlink(missing_ok=True)
        raise VllmFailed(f"vLLM, asked to {do}: {answer['error']}")

    def close(self) -> None:
        self._end()
        self.log.unlink(missing_ok=True)

    def _end(self) -> None:
        """Once it has ended, its log is whole."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()
        with contextlib.suppress(OSError):
            self._answers.close()
        self._logging.join(STOP_S)


class _Kept:
    """The one engine of this process, and the weights that it holds."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.architecture = ""
        self.weights: tuple[str, str] | None = None

    def load(self, folder: Path, dtype: str, serving: Serving, rank: int | None = None) -> Child:
        """The engine with the weights of `folder`, with room for adapters of a rank."""
        sizes = {name: value for name, value in read_config(folder).items() if name not in OF_NO_ARCHITECTURE}
        architecture = hash_key([sizes, dtype, rank, serving.model_dump(mode="json")])
        weights = str(folder), tree_stamp(folder)
        if self.child is not None and (self.child.process.poll() is not None or architecture != self.architecture):
            self.close()
        if self.child is not None and weights != self.weights:
            with contextlib.suppress(VllmFailed):
                self.child.ask("load", model=str(folder))
                self.weights = weights
            if self.weights != weights:  # a reload that failed leaves a broken engine
                self.close()
        if self.child is None:
            child = Child(serving)
            ENGINE_VERSIONS["vllm"] = child.ask("start", model=str(folder), arguments=_arguments(dtype, serving, rank))["version"]
            self.child, self.architecture, self.weights = child, architecture, weights
        return self.child

    def rest(self) -> None:
        """Between stages: a GPU's memory is a trainer's."""
        if self.child is not None and HAS_GPU:
            self.child.ask("sleep")
            self.weights = None

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
        self.child = self.weights = None


def _arguments(dtype: str, serving: Serving, rank: int | None) -> dict[str, Any]:
    lora = {} if rank is None else {"enable_lora": True, "max_lora_rank": next(r for r in LORA_RANKS if r >= rank)}
    found: dict[str, Any] = {"dtype": dtype, "tensor_parallel_size": serving.tensor_parallel_size, **lora, **serving.arguments}
    if HAS_GPU:
        found["gpu_memory_utilization"] = serving.gpu_memory_utilization
    return found if serving.max_model_len is None else found | {"max_model_len": serving.max_model_len}


KEPT = _Kept()
atexit.register(KEPT.close)
AFTER_STAGE.append(KEPT.rest)


class VllmEngine:
    """A policy that writes and scores in vLLM; see Vocabulary for `control` and `base`, and the module for what is kept.

    An adapter goes with each request, over the weights of its base. Raises ValueError for a tokenizer or template that cannot be used.
    """

    def __init__(self, path: Path, dtype: str, serving: Serving, control: str | None = None, base: Path | None = None):
        from bench.engines.hf import check_weights

        self.vocabulary = Vocabulary(path, control, base)
        self.tokenizer = self.vocabulary.tokenizer
        check_rendering(path, self.tokenizer, self.vocabulary.ends)
        if len(self.tokenizer) > self.vocabulary.size:
            raise ValueError(f"{path} has embeddings of {self.vocabulary.size} tokens and a tokenizer of {len(self.tokenizer)}")
        folder = model_folder(path)
        self._adapter: dict[str, Any] = {}
        rank = None
        adapter = None
        if base is None:
            check_no_adapter(folder)
        elif (folder / ADAPTER).exists():
            rank = whole_number(read_config(folder, ADAPTER).get("r"), f"{folder / ADAPTER}: r", 1, 10**6)
            self._adapter = {"adapter": str(folder)}
            adapter, folder = folder, model_folder(base)
        check_weights(folder, adapter)
        self._load = folder, dtype, serving, rank

    def generate(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, progress: Progress = silent) -> list[DrawnCompletion]:
        """A completion of each prompt, in the prompts' order."""
        sampling: dict[str, Any] = {"temperature": decoding.temperature, "max_tokens": decoding.max_new_tokens}
        sampling |= {"top_p": decoding.top_p} if decoding.temperature else {}
        sampling |= {"stop_token_ids": sorted(self.vocabulary.ends)}
        sampling |= {"logit_bias": {str(token): NEVER for token in self.vocabulary.unwritten}} if self.vocabulary.unwritten else {}
        seeds = [seed * 1_000_003 + place for place in range(len(prompts))]
        answer = self._ask("generate", progress, prompts=list(prompts), seeds=seeds, sampling=sampling, **self._adapter)
        progress(len(prompts), len(prompts))
        return [self.vocabulary.written(ids) for ids in answer["ids"]]

    def logps(self, rows: Sequence[Ids], progress: Progress = silent) -> list[float]:
        """Summed log-probability (nats) of each row's completion given its prompt, in the rows' order and the model's dtype.

        In float32 within 1e-4 of transformers; in bfloat16 a completion of 200 tokens may be half a nat off.
        """
        if self._adapter:
            raise ValueError("vLLM does not score prompts under an adapter: take engine.logps=transformers")
        answer = self._ask("logps", progress, prompts=[row.prompt for row in rows], completions=[row.completion for row in rows])
        progress(len(rows), len(rows))
        return list(answer["logps"])

    def _ask(self, do: str, progress: Progress, **request: Any) -> dict[str, Any]:
        child = KEPT.load(*self._load)
        try:
            return child.ask(do, progress, **request)
        except VllmFailed:
            KEPT.close()
            raise
