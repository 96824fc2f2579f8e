"""A process that holds a vLLM engine for a worker: requests are JSON lines on standard input, answers on a pipe.

Imports nothing of bench, so that it may run in an environment of its own: vLLM asks for other versions than trainers do.
Run by `bench.engines.vllm`, which says what requests hold. Ends with its parent.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HAS_GPU = Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()
REASON_LENGTH = 400


class Held:
    """The running engine; `tell` hears (done, total) while it works."""

    def __init__(self, tell: Callable[[int, int], None]):
        self.tell, self.asleep = tell, False
        self.llm: Any = None
        self.adapters = 0  # asked with so far

    def start(self, model: str, arguments: dict[str, Any]) -> dict[str, Any]:
        import vllm

        arguments = {"skip_tokenizer_init": True, "generation_config": "vllm", "seed": 0, **arguments}
        if HAS_GPU:
            arguments = {"enable_sleep_mode": True, **arguments}
        else:  # chunked prefill and seeds do not go together on a CPU: its generators cannot be rewound
            arguments = {"enforce_eager": True, "enable_chunked_prefill": False, **arguments}
        self.llm = vllm.LLM(model=model, **arguments)
        return {"version": vllm.__version__, "max_model_len": self.llm.llm_engine.model_config.max_model_len}

    def load(self, model: str) -> dict[str, Any]:
        """Other weights of the same architecture."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
        self.asleep = False
        if not self.llm.reset_prefix_cache():  # else the new weights go on from what the old ones made of a prompt
            raise RuntimeError("the prefix cache was not reset: a request is still under way")
        return {}

    def sleep(self) -> dict[str, Any]:
        """Gives the GPU's memory back; the next `load` wakes it. A CPU engine stays as it is: vLLM's sleep frees nothing there."""
        if HAS_GPU and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True
        return {}

    def generate(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: dict[str, Any], adapter: str | None = None
    ) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        bias = {int(token): value for token, value in sampling.pop("logit_bias", {}).items()}
        parameters = [SamplingParams(seed=seed, detokenize=False, logit_bias=bias or None, **sampling) for seed in seeds]
        lora = None
        if adapter is not None:  # a new number each time: nothing that is kept of one adapter may serve another
            self.adapters += 1
            lora = LoRARequest(f"adapter {self.adapters}", self.adapters, adapter)
        return {"ids": [list(done.outputs[0].token_ids) for done in self._run(prompts, parameters, lora)]}

    def logps(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> dict[str, Any]:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        whole = [before + after for before, after in zip(prompts, completions, strict=True)]
        sums = []
        for ids, before, done in zip(whole, prompts, self._run(whole, [parameters] * len(whole)), strict=True):
            sums.append(sum(done.prompt_logprobs[place][ids[place]].logprob for place in range(len(before), len(ids))))
        return {"logps": sums}

    def _run(self, prompts: Sequence[list[int]], parameters: Sequence[Any], lora: Any = None) -> list[Any]:
        engine = self.llm.llm_engine
        for place, (ids, parameter) in enumerate(zip(prompts, parameters, strict=True)):
            engine.add_request(str(place), {"prompt_token_ids": ids}, parameter, lora_request=lora)
        finished: dict[int, Any] = {}
        told = time.monotonic()
        while engine.has_unfinished_requests():
            finished |= {int(output.request_id): output for output in engine.step() if output.finished}
            if time.monotonic() - told > 0.2:
                told = time.monotonic()
                self.tell(len(finished), len(prompts))
        return [finished[place] for place in range(len(prompts))]


def _end_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    _end_with(int(sys.argv[1]))
    with os.fdopen(int(sys.argv[2]), "w", buffering=1, encoding="utf-8") as answers:

        def answer(**facts: Any) -> None:
            answers.write(json.dumps(facts) + "\n")

        held = Held(lambda done, total: answer(done=done, total=total))
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer(ok=True, **getattr(held, request.pop("do"))(**request))
            except Exception as error:
                traceback.print_exc()
                answer(ok=False, error=" ".join(f"{type(error).__name__}: {error}".split())[:REASON_LENGTH])
            sys.stdout.flush()
            sys.stderr.flush()


if __name__ == "__main__":
    main()
