"""The vLLM process of a worker. Requests are JSON lines on standard input, replies are JSON lines on a pipe.

This file imports nothing of bench, so that it can run in another Python environment: vLLM needs other package
versions than the trainers. `bench.engines.vllm` starts it and sends the requests. It ends when its parent
ends.
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


class RunningEngine:
    """The running vLLM engine. Its public methods are the requests.

    `report` gets (done, total) while the engine generates.
    """

    def __init__(self, report: Callable[[int, int], None]):
        self.report, self.asleep = report, False
        self.llm: Any = None
        self.adapters = 0  # Number of requests with an adapter so far.

    def start(self, model: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Start vLLM with the weights of the folder `model`."""
        import vllm

        arguments = {"skip_tokenizer_init": True, "generation_config": "vllm", "seed": 0, **arguments}
        if HAS_GPU:
            arguments = {"enable_sleep_mode": True, **arguments}
        else:  # On a CPU, chunked prefill does not work with seeds: the generators cannot be rewound.
            arguments = {"enforce_eager": True, "enable_chunked_prefill": False, **arguments}
        self.llm = vllm.LLM(model=model, **arguments)
        return {"version": vllm.__version__, "max_model_len": self.llm.llm_engine.model_config.max_model_len}

    def load(self, model: str) -> dict[str, Any]:
        """Load other weights of the same architecture, from the folder `model`."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
        self.asleep = False
        # Otherwise the new weights would use the old weights' cached prompts.
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache, because a request is still running")
        return {}

    def sleep(self) -> dict[str, Any]:
        """Free the GPU's memory; the next `load` wakes the engine.

        Does nothing on a CPU, where vLLM's sleep frees no memory.
        """
        if HAS_GPU and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True
        return {}

    def generate(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        sampling: dict[str, Any],
        adapter: str | None = None,
    ) -> dict[str, Any]:
        """Completions of prompts, as token ids, in the prompts' order. `adapter`: its folder."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        bias = {int(token): value for token, value in sampling.pop("logit_bias", {}).items()}
        parameters = [
            SamplingParams(seed=seed, detokenize=False, logit_bias=bias or None, **sampling) for seed in seeds
        ]
        lora = None
        if adapter is not None:  # A new number each time, so that vLLM reuses nothing of another adapter.
            self.adapters += 1
            lora = LoRARequest(f"adapter {self.adapters}", self.adapters, adapter)
        return {"ids": [list(done.outputs[0].token_ids) for done in self._run(prompts, parameters, lora)]}

    def logps(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> dict[str, Any]:
        """Summed log-probability (nats) of each completion given its prompt, both as token ids."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        whole = [before + after for before, after in zip(prompts, completions, strict=True)]
        sums = []
        for ids, before, done in zip(
            whole, prompts, self._run(whole, [parameters] * len(whole)), strict=True
        ):
            sums.append(
                sum(done.prompt_logprobs[place][ids[place]].logprob for place in range(len(before), len(ids)))
            )
        return {"logps": sums}

    def _run(self, prompts: Sequence[list[int]], parameters: Sequence[Any], lora: Any = None) -> list[Any]:
        engine = self.llm.llm_engine
        for place, (ids, parameter) in enumerate(zip(prompts, parameters, strict=True)):
            engine.add_request(str(place), {"prompt_token_ids": ids}, parameter, lora_request=lora)
        finished: dict[int, Any] = {}
        reported = time.monotonic()
        while engine.has_unfinished_requests():
            finished |= {int(output.request_id): output for output in engine.step() if output.finished}
            if time.monotonic() - reported > 0.2:
                reported = time.monotonic()
                self.report(len(finished), len(prompts))
        return [finished[place] for place in range(len(prompts))]


def _end_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Handle requests until standard input ends.

    Arguments: the parent's process id, and the file descriptor for replies.
    """
    _end_with(int(sys.argv[1]))
    with os.fdopen(int(sys.argv[2]), "w", buffering=1, encoding="utf-8") as replies:

        def reply(**facts: Any) -> None:
            replies.write(json.dumps(facts) + "\n")

        engine = RunningEngine(lambda done, total: reply(done=done, total=total))
        for line in sys.stdin:
            request = json.loads(line)
            try:
                reply(ok=True, **getattr(engine, request.pop("do"))(**request))
            except Exception as error:
                traceback.print_exc()
                reply(ok=False, error=" ".join(f"{type(error).__name__}: {error}".split())[:REASON_LENGTH])
            sys.stdout.flush()
            sys.stderr.flush()


if __name__ == "__main__":
    main()
