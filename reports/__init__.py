"""Reports: what runs did, as pictures and one page that a person can look at."""

from reports.report import write_report

__all__ = ["write_report"]
