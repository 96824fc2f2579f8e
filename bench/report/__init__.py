"""From the store to what a person reads: tables, figures, sample completions. Loads no torch and runs no judge."""

from bench.report.rows import Group, Row, Sweep, collect, flat_rows, groups
from bench.report.write import Paths, print_report, write_files

__all__ = ["Group", "Paths", "Row", "Sweep", "collect", "flat_rows", "groups", "print_report", "write_files"]
