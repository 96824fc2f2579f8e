"""The tiny trained setup of tests/tiny.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
