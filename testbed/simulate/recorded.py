"""A simulation's folder, whatever it simulates: its name, its manifest, and its trials written one by one."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from testbed import __version__
from testbed.campaigns.files import file_digests
from testbed.config.inventory import Inventory
from testbed.config.workloads import AnyCampaign
from testbed.records import RecordWriter, Run, load_run, write_manifest
from testbed.records.lock import locked

__all__ = ["free_name", "manifest_of", "recorded"]

_PACKAGES = ("numpy", "scipy", "torch", "transformers", "pandas", "pyarrow")


def free_name(results: Path, campaign: AnyCampaign) -> str:
    """Return the name of the next simulation of a campaign; its numbers are not those of the campaign's runs."""
    stem = f"sim-{campaign.campaign}"
    tails = [path.name.rpartition("-")[2] for path in results.glob(f"{stem}-*")]
    return f"{stem}-{max((int(tail) for tail in tails if tail.isdigit()), default=0) + 1:04d}"


def manifest_of(
    name: str, campaign: AnyCampaign, inventory: Inventory, command: str, predicts: Run | None = None
) -> dict[str, Any]:
    """Return what the manifest of every simulation says.

    Args:
        name: The simulation's name.
        campaign: The campaign.
        inventory: The lab.
        command: The command that makes such a simulation again.
        predicts: The run that it is compared with.
    """
    return {
        "run": name,
        "state": "running",
        "simulated": True,
        **({"predicts": predicts.name} if predicts is not None else {}),
        "started_unix": time.time(),
        "campaign_name": campaign.campaign,
        "workload": campaign.workload,
        "campaign": campaign.text,
        "command": command,
        "files": {"read": file_digests(campaign)},
        "versions": {
            "testbed": __version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
        "machine": {"system": platform.platform(), "processor": "", "cpu_count": os.cpu_count()},
        "inventory": inventory.resolved(),
        "facts": {},
        "emulated": False,
        "links": {"shaping": inventory.network.shaping, "leaf": inventory.network.leaf, "backends": {}},
        "power_total": {},
        "seeds": {"campaign": campaign.seed},
        "security": None,
    }


def recorded(
    folder: Path,
    manifest: Mapping[str, Any],
    write_trials: Callable[[RecordWriter], Iterator[None]],
    done: Callable[[int], None] | None = None,
) -> tuple[Run, float]:
    """Write a simulation, trial by trial; return it as a run, and the seconds that it took.

    Args:
        folder: Its folder.
        manifest: Its manifest; ``simulation`` gets the seconds.
        write_trials: Writes one trial whenever it is asked for the next.
        done: Told how many trials are done.

    Raises:
        RefusedError: Another testbed is at work on it.
    """
    begun_s = time.monotonic()
    with locked(folder):
        write_manifest(folder, manifest)
        try:
            for number, _ in enumerate(write_trials(RecordWriter(folder)), 1):
                if done is not None:
                    done(number)
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            write_manifest(folder, {**manifest, "state": state})
            raise
        seconds = time.monotonic() - begun_s
        simulation = {**manifest.get("simulation", {}), "seconds": round(seconds, 3)}
        write_manifest(folder, {**manifest, "simulation": simulation, "state": "completed"})
    return load_run(folder), seconds
