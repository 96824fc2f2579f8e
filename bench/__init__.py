"""The benchmark harness for LLM preference alignment; README.md says how it is used."""

__version__ = "0.1.0"
