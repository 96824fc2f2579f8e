"""Published tables of the papers whose methods bench runs, and the rule that compares them with ours.

Nothing here was measured by bench. `published.py` reads and checks the facts in `tables/`, `verdict.py` holds
the rule. Comparisons of our rows are handed in as dataclasses of `stats/`.
"""

from bench.papers.published import PublishedTable, metrics, tables
from bench.papers.verdict import Ours, Theirs, VerdictWord, Word, best_of_grid, verdict

__all__ = [
    "Ours",
    "PublishedTable",
    "Theirs",
    "VerdictWord",
    "Word",
    "best_of_grid",
    "metrics",
    "tables",
    "verdict",
]
