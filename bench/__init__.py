"""A benchmark harness for LLM preference alignment. README.md explains its use."""

__version__ = "0.1.0"
