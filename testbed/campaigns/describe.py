"""The manifest of a run: what it was and on what, as plain data without secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from testbed import __version__
from testbed.campaigns.plan import RunInputs
from testbed.campaigns.prepare import Probed

__all__ = ["describe_run"]

PACKAGES = ("torch", "transformers", "fabric", "paramiko", "jetson-stats", "pandas", "pyarrow")


def describe_run(inputs: RunInputs, probed: Probed, command: str, started_unix: float) -> dict[str, Any]:
    """Return the manifest of a run that is about to begin.

    Args:
        inputs: What the plan follows from.
        probed: What the hosts answered.
        command: The command that makes such a run again.
        started_unix: The run's start in unix seconds on the base station's clock.
    """
    campaign, network = inputs.campaign, inputs.inventory.network
    return {
        "run": inputs.run,
        "state": "running",
        "started_unix": started_unix,
        "campaign_name": campaign.campaign,
        "workload": campaign.workload,
        "campaign": campaign.text,
        "command": command,
        "versions": {"testbed": __version__, "python": platform.python_version(), **_package_versions()},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cpu_count": os.cpu_count(),
        },
        "inventory": inputs.inventory.resolved(),
        "facts": probed.as_json(),
        "emulated": inputs.inventory.emulation is not None,
        **inputs.work.describe(),
        # What shapes each link is added when it is first set: it may depend on the host's kernel.
        "links": {"shaping": network.shaping, "leaf": network.leaf, "backends": {}},
        "power_total": {},
        "seeds": {"campaign": campaign.seed},
        "security": network.security,
    }


def _package_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _processor() -> str:
    """Return the name of this machine's processor."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
