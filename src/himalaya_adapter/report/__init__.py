"""Self-contained HTML reports: of one run (``report.html``), of several side by side, of a search."""

from himalaya_adapter.report.result_pages import write_comparison, write_run_report
from himalaya_adapter.report.run_folder import finished_runs
from himalaya_adapter.report.search_page import write_search_report

__all__ = ["finished_runs", "write_comparison", "write_run_report", "write_search_report"]
