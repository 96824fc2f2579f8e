"""The alpaca-eval package: the only module that looks for it or imports it.

Without the package only these fail: judge=alpaca_eval with the package's annotators, and the package's own
length-controlled win rate in do=rescore.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

INSTALL = "pip install alpaca-eval==0.6.6"


@cache
def annotators_folder() -> Path:
    """The folder of annotators in the installed package.

    The package is not imported, since that takes seconds. Raises ValueError where it is not installed.
    """
    try:
        return Path(str(distribution("alpaca-eval").locate_file("alpaca_eval/evaluators_configs")))
    except PackageNotFoundError as error:
        raise ValueError(f"The alpaca-eval package is not installed. Install it: {INSTALL}") from error


def parse_completion(parser: str, text: str, kwargs: Mapping[str, Any]) -> float:
    """The number that a parser of the package reads from one reply. A parser may raise anything."""
    from alpaca_eval import completion_parsers

    (value,) = getattr(completion_parsers, parser)(text, **copy.deepcopy(dict(kwargs)))
    return float(value)


@contextlib.contextmanager
def glm_winrate_module() -> Iterator[Any]:
    """The package's module of metrics. Importing and fitting change no settings of this process.

    That covers the log level, warnings and scikit-learn's settings.
    """
    import sklearn

    level = logging.getLogger().level
    with warnings.catch_warnings(), sklearn.config_context():
        warnings.simplefilter("ignore")
        from alpaca_eval.metrics import glm_winrate

        logging.getLogger().setLevel(level)
        yield glm_winrate
