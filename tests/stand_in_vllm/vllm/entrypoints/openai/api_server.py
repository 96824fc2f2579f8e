"""Stands where vLLM's server stands in a command, and serves the model through transformers (tests/local_server.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[4]))

from local_server import main

if __name__ == "__main__":
    main()
