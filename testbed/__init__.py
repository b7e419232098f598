"""Reproducible wireless edge AI experiments on a rack of unequal Jetsons, real or emulated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_run"]

if TYPE_CHECKING:
    from testbed.records import load_run


def __getattr__(name: str) -> Any:
    """Import :func:`load_run` when it is first asked for: it brings pandas, which most verbs do not need."""
    if name == "load_run":
        from testbed.records import load_run

        return load_run
    raise AttributeError(f"module 'testbed' has no attribute {name!r}")
