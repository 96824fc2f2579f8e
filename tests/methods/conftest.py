"""The tiny trained setup of tests/tiny.py; one thread, as in a worker."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(1)
