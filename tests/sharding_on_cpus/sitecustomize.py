"""Python imports this at start when the folder is on PYTHONPATH: FSDP and ZeRO-3 shard over CPU processes, as they do over GPUs.

accelerate shards on accelerators alone, and on CPUs trains whole copies without a word. Here each process that it starts takes a CPU
for a GPU, and gloo for NCCL; torch's `fully_shard` and DeepSpeed's engine are the real ones.
"""

import os

if "RANK" in os.environ and "true" in (
    os.environ.get("ACCELERATE_USE_FSDP"),
    os.environ.get("ACCELERATE_USE_DEEPSPEED"),
):
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    import torch
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    def _prepare_backend(*_, **__):
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend="gloo")
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = _prepare_backend
    for state in (PartialState, AcceleratorState):

        def not_on_cpus(self, *given, _init=state.__init__, **named):
            own = {name: False if name == "cpu" else value for name, value in named.items()}
            _init(self, *(False if isinstance(value, bool) else value for value in given), **own)

        state.__init__ = not_on_cpus
