"""Figures and self-contained HTML reports of finished runs, alone (``report.html``) or side by side."""

from himalaya_adapter.report.comparison_page import write_comparison
from himalaya_adapter.report.html import write_run_report

__all__ = ["write_comparison", "write_run_report"]
