"""From the store to what a person reads: tables, figures, sample completions. Loads no torch and runs no judge."""

from bench.report.export import export, export_faults
from bench.report.passports import PASSPORTS
from bench.report.rows import Group, Pooled, Rescored, Row, Sweep, collect, flat_rows, pool, stored_result
from bench.report.tables import Table
from bench.report.write import Paths, csv_text, print_comparison, print_report, print_table, write_files

__all__ = [
    "PASSPORTS",
    "Group",
    "Paths",
    "Pooled",
    "Rescored",
    "Row",
    "Sweep",
    "Table",
    "collect",
    "csv_text",
    "export",
    "export_faults",
    "flat_rows",
    "pool",
    "print_comparison",
    "print_report",
    "print_table",
    "stored_result",
    "write_files",
]
