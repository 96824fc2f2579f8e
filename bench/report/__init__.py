"""From the store to what a person reads: tables, figures, sample completions. Loads no torch and runs no judge."""

from bench.report.rows import Group, Pooled, Row, Sweep, collect, flat_rows, pool
from bench.report.write import Paths, print_report, write_files

__all__ = ["Group", "Paths", "Pooled", "Row", "Sweep", "collect", "flat_rows", "pool", "print_report", "write_files"]
