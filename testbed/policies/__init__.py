"""What anyone can ask of an expert selection, of testbed's or of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.policies.contract import Check, check_selector, random_view

__all__ = ["Check", "check_selector", "random_view"]


def __getattr__(name: str) -> Any:
    """Import what needs NumPy when it is first asked for: checking a campaign file does without."""
    if name in __all__:
        from testbed.policies import contract

        return getattr(contract, name)
    raise AttributeError(f"module 'testbed.policies' has no attribute {name!r}")
