"""Published tables of the papers whose methods bench runs, and the rule that compares them with ours.

Nothing here was measured by bench. `published.py` reads and checks the facts in `tables/`, `verdict.py` holds
the rule. Comparisons of our rows are handed in as dataclasses of `stats/`.
"""

from bench.papers.published import Beside, PublishedTable, beside, metrics, tables
from bench.papers.verdict import Ours, Theirs, VerdictWord, Word, best_of_grid, verdict

__all__ = [
    "Beside",
    "Ours",
    "PublishedTable",
    "Theirs",
    "VerdictWord",
    "Word",
    "beside",
    "best_of_grid",
    "metrics",
    "tables",
    "verdict",
]
