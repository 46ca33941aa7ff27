"""Reports of runs, as pictures and one HTML page."""

from reports.report import write_report

__all__ = ["write_report"]
