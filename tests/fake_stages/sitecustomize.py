"""Python imports this at start when the folder is on PYTHONPATH: workers of the tests know the fake stage."""

import sys

import fake_stage

from bench import kinds

kinds.SETTINGS["fake"] = (fake_stage.Fake,)
kinds.VERSIONS["fake"] = 1
sys.modules["bench.stages.fake"] = fake_stage
