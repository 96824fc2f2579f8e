"""Python imports this at start when the folder is on PYTHONPATH: workers of the tests know the fake stage."""

import sys

import fake_stage

from bench.store import stage_settings

stage_settings.SETTINGS["fake"] = (fake_stage.Fake,)
stage_settings.VERSIONS["fake"] = 1
sys.modules["bench.stages.fake"] = fake_stage
