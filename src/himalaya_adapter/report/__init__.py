"""Figures and self-contained HTML reports: of finished runs, alone (``report.html``) or side by side, and of searches."""

from himalaya_adapter.report.html import write_comparison, write_run_report
from himalaya_adapter.report.search_page import write_search_report

__all__ = ["write_comparison", "write_run_report", "write_search_report"]
