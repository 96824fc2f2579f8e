# The README's environment in an image; no image of it has been built yet.
#   docker build -t bench .                                            CPU
#   docker build --build-arg INDEX=https://pypi.org/simple -t bench .  CUDA: PyPI's torch brings it; run with --gpus all
#   docker run -v "$PWD/results:/results" bench +sweep=kto_beta
FROM python:3.11-slim
ARG INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=${INDEX} BENCH_RESULTS=/results
WORKDIR /bench
COPY . .
RUN python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e .
ENTRYPOINT [".venv/bin/python", "-m", "bench"]
