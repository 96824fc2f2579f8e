"""vLLM as an engine: each worker keeps one vLLM process during a sweep and loads every policy's weights into
it.

A running process takes only weights of its own architecture. Another config.json, dtype or argument, or any
error, means a new process. On a GPU the process frees its memory between stages. Each sampled completion has
its own seed, made from the stage's seed and the prompt's index.
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
NEVER = -100.0  # Added to the logits of suppressed tokens.
STOP_S = 15.0
LOG_TAIL = 6000  # Characters of the process's log that go to a stage's log after an error.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # Values that vLLM accepts for max_lora_rank.
NOT_ARCHITECTURE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "control_tokens")


class VllmFailed(RuntimeError):
    """An error in the vLLM process. The process is stopped, and the next stage starts a new one."""


class Child:
    """The vLLM process. It handles one request at a time."""

    def __init__(self, serving: Serving):
        read_end, write_end = os.pipe()
        self.log = Path(tempfile.mkstemp(prefix="bench-vllm-", suffix=".log")[1])
        # With one device, vLLM runs in one process: it starts faster and ends cleanly. Variables that the
        # user has set win.
        single = {} if serving.tensor_parallel_size > 1 else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        environment = {**ENVIRONMENT, **single, "VLLM_LOGGING_LEVEL": "WARNING", **os.environ}
        if serving.python is not None:
            environment.pop("PYTHONPATH", None)  # It belongs to this Python environment, not to vLLM's.
        line = [serving.python or sys.executable, "-P", str(CHILD), str(os.getpid()), str(write_end)]
        log, self._logging = secrets.pipe_into(self.log)
        self.process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[write_end],
            env=environment,
            encoding="utf-8",
            bufsize=1,
        )
        os.close(write_end)
        os.close(log)
        self._replies = os.fdopen(read_end, encoding="utf-8")

    def ask(self, do: str, progress: Progress = silent, **request: Any) -> dict[str, Any]:
        """Send a request and return the reply. `do`: name of a method of vllm_child.RunningEngine.

        Raises VllmFailed after printing the end of the process's log to standard error.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        for line in self._replies:
            reply: dict[str, Any] = json.loads(line)
            if "done" in reply:
                progress(reply["done"], reply["total"])
            elif reply["ok"]:
                return reply
            else:
                break
        else:
            reply = {"error": f"its process ended with exit code {self.process.wait(STOP_S)}"}
        self._end()
        print(self.log.read_text("utf-8", "replace")[-LOG_TAIL:], file=sys.stderr)
        self.log.unlink(missing_ok=True)
        raise VllmFailed(f"vLLM failed to {do}: {reply['error']}")

    def close(self) -> None:
        self._end()
        self.log.unlink(missing_ok=True)

    def _end(self) -> None:
        """Close the process's input and wait until it has ended and its log is complete."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()
        with contextlib.suppress(OSError):
            self._replies.close()
        self._logging.join(STOP_S)


class _Kept:
    """This worker's vLLM process, and the weights loaded in it."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.architecture = ""
        self.weights: tuple[str, str] | None = None

    def load(self, folder: Path, dtype: str, serving: Serving, rank: int | None = None) -> Child:
        """The process with the weights of `folder` loaded.

        `rank`: the highest rank of adapters that it must accept.
        """
        sizes = {name: value for name, value in read_config(folder).items() if name not in NOT_ARCHITECTURE}
        architecture = hash_key([sizes, dtype, rank, serving.model_dump(mode="json")])
        weights = str(folder), tree_stamp(folder)
        if self.child is not None and (
            self.child.process.poll() is not None or architecture != self.architecture
        ):
            self.close()
        if self.child is not None and weights != self.weights:
            with contextlib.suppress(VllmFailed):
                self.child.ask("load", model=str(folder))
                self.weights = weights
            if self.weights != weights:  # A failed reload leaves a broken engine.
                self.close()
        if self.child is None:
            child = Child(serving)
            ENGINE_VERSIONS["vllm"] = child.ask(
                "start", model=str(folder), arguments=_arguments(dtype, serving, rank)
            )["version"]
            self.child, self.architecture, self.weights = child, architecture, weights
        return self.child

    def free_gpu_memory(self) -> None:
        """Free the GPU's memory between stages, because a trainer may need it."""
        if self.child is not None and HAS_GPU:
            self.child.ask("sleep")
            self.weights = None

    def close(self) -> None:
        """End the process."""
        if self.child is not None:
            self.child.close()
        self.child = self.weights = None


def _arguments(dtype: str, serving: Serving, rank: int | None) -> dict[str, Any]:
    lora = (
        {}
        if rank is None
        else {"enable_lora": True, "max_lora_rank": next(r for r in LORA_RANKS if r >= rank)}
    )
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "tensor_parallel_size": serving.tensor_parallel_size,
        **lora,
        **serving.arguments,
    }
    if HAS_GPU:
        arguments["gpu_memory_utilization"] = serving.gpu_memory_utilization
    return (
        arguments if serving.max_model_len is None else arguments | {"max_model_len": serving.max_model_len}
    )


KEPT = _Kept()
atexit.register(KEPT.close)
AFTER_STAGE.append(KEPT.free_gpu_memory)


class VllmEngine:
    """A policy run by vLLM; see Vocabulary for `control` and `base`.

    vLLM holds the base model's weights, and each request names the adapter. Raises ValueError for a tokenizer
    or template that cannot be used.
    """

    def __init__(
        self, path: Path, dtype: str, serving: Serving, control: str | None = None, base: Path | None = None
    ):
        from bench.engines.hf import check_weights

        self.vocabulary = Vocabulary(path, control, base)
        self.tokenizer = self.vocabulary.tokenizer
        check_rendering(path, self.tokenizer, self.vocabulary.ends)
        if len(self.tokenizer) > self.vocabulary.size:
            raise ValueError(
                f"the tokenizer in {path} has {len(self.tokenizer)} tokens, but the model has embeddings for {self.vocabulary.size}. "
                "Use the tokenizer that belongs to the model."
            )
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

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, progress: Progress = silent
    ) -> list[DrawnCompletion]:
        """One completion per prompt, in the prompts' order."""
        sampling: dict[str, Any] = {
            "temperature": decoding.temperature,
            "max_tokens": decoding.max_new_tokens,
        }
        sampling |= {"top_p": decoding.top_p} if decoding.temperature else {}
        sampling |= {"stop_token_ids": sorted(self.vocabulary.ends)}
        sampling |= (
            {"logit_bias": {str(token): NEVER for token in self.vocabulary.suppressed}}
            if self.vocabulary.suppressed
            else {}
        )
        seeds = [seed * 1_000_003 + place for place in range(len(prompts))]
        reply = self._ask(
            "generate", progress, prompts=list(prompts), seeds=seeds, sampling=sampling, **self._adapter
        )
        progress(len(prompts), len(prompts))
        return [self.vocabulary.to_completion(ids) for ids in reply["ids"]]

    def logps(self, rows: Sequence[Ids], progress: Progress = silent) -> list[float]:
        """Summed log-probability (nats) of each row's completion given its prompt, in the rows' order and the
        model's dtype.

        In float32 it is within 1e-4 of transformers; in bfloat16 a completion of 200 tokens may differ by 0.5
        nats. Raises ValueError for an adapter.
        """
        if self._adapter:
            raise ValueError(
                "vLLM cannot compute log-probabilities with an adapter. Use engine.logps=transformers."
            )
        reply = self._ask(
            "logps",
            progress,
            prompts=[row.prompt for row in rows],
            completions=[row.completion for row in rows],
        )
        progress(len(rows), len(rows))
        return list(reply["logps"])

    def _ask(self, do: str, progress: Progress, **request: Any) -> dict[str, Any]:
        child = KEPT.load(*self._load)
        try:
            return child.ask(do, progress, **request)
        except VllmFailed:
            KEPT.close()
            raise
