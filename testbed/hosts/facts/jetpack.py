"""JetPack: which one a version of NVIDIA's Linux for Tegra belongs to."""

from __future__ import annotations

import re

from testbed.boards.releases import jetpack_of

__all__ = ["jetpack_of", "l4t_of"]


def l4t_of(release: str | None) -> str | None:
    """Return the version in ``/etc/nv_tegra_release``."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    return f"{match[1]}.{match[2]}" if match else None
