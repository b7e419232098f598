"""From a run's records to figures, one HTML file, and a trace: only what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.report.page import render_report, write_report
    from testbed.report.trace import write_trace

__all__ = ["render_report", "write_report", "write_trace"]


def __getattr__(name: str) -> Any:
    """Import what needs pandas and plotly when it is first asked for."""
    if name == "write_trace":
        from testbed.report import trace

        return trace.write_trace
    if name in __all__:
        from testbed.report import page

        return getattr(page, name)
    raise AttributeError(f"module 'testbed.report' has no attribute {name!r}")
