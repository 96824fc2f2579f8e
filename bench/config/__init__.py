"""Settings that a user can make: frozen pydantic models, unknown keys refused.

`Cell` is one point of the grid: everything in it may change a number and reaches a stage key (names
excepted). `Session` is how a command runs - verb, launcher, tracker, folders - and reaches no key.
"""
# ruff: noqa: F403

from bench.config.adapters import *
from bench.config.base import *
from bench.config.cell import *
from bench.config.data import *
from bench.config.forgetting import *
from bench.config.judges import *
from bench.config.methods import *
from bench.config.names import *
from bench.config.session import *
from bench.config.world import *
