"""Reports made from the store: tables, figures, sample completions. Loads no torch and runs no judge."""

from bench.report.benchmark_files import export, export_faults
from bench.report.csv_rows import flat_rows
from bench.report.groups import Grid, Group, pool
from bench.report.passports import PASSPORTS
from bench.report.rows import CellRow, Rescored, Sweep, collect, stored_result
from bench.report.tables import HOW_TO_READ, Table
from bench.report.write import Paths, csv_text, print_comparison, print_report, print_table, write_files

__all__ = [
    "HOW_TO_READ",
    "PASSPORTS",
    "CellRow",
    "Grid",
    "Group",
    "Paths",
    "Rescored",
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
