"""What the release of a board's system is known by: files below ``/etc``, and the options of its kernel.

The kernel is this machine's all the same. What a release's kernel is built without is not in the configuration that
a board shows; asked directly, the kernel may have it.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from testbed.boards.model import Board, Release

__all__ = ["MACHINE_CONFIG", "kernel_config", "nvpmodel_file", "os_release", "packed_config", "tegra_release"]

MACHINE_CONFIG = Path("/proc/config.gz")


def tegra_release(board: Board) -> str:
    """Return ``/etc/nv_tegra_release``."""
    release, _, revision = board.l4t.partition(".")
    return (
        f"# R{release} (release), REVISION: {revision}, GCID: 0, BOARD: generic, EABI: aarch64, "
        "DATE: Thu Jan  1 00:00:00 UTC 1970\n"
    )


def os_release(release: Release) -> str:
    """Return ``/etc/os-release``. The packages are this machine's all the same."""
    return "\n".join(
        [
            f'PRETTY_NAME="Ubuntu {release.ubuntu} LTS (emulated)"',
            'NAME="Ubuntu"',
            f'VERSION_ID="{release.ubuntu}"',
            f"VERSION_CODENAME={release.codename}",
            "ID=ubuntu",
            "ID_LIKE=debian",
            f"UBUNTU_CODENAME={release.codename}",
            "",
        ]
    )


def nvpmodel_file(board: Board) -> str:
    """Return the path of the file that ``/etc/nvpmodel.conf`` leads to: it has the module's number in its name."""
    found = re.search(r"p(\d{4}-\d{4})", " ".join(name for name in board.compatible if "+" not in name))
    number = found[1].replace("-", "_") if found else "0000_0000"
    return f"/etc/nvpmodel/nvpmodel_p{number}.conf"


def kernel_config(text: str, missing: Sequence[str]) -> str:
    """Return a kernel's configuration without some options.

    Args:
        text: The configuration.
        missing: The options without ``CONFIG_``.
    """
    for option in missing:
        off = f"# CONFIG_{option} is not set"
        text = re.sub(rf"^CONFIG_{option}=.*$", off, text, flags=re.MULTILINE)
    return text


@cache
def packed_config(missing: tuple[str, ...], machine: Path = MACHINE_CONFIG) -> bytes | None:
    """Return what covers ``/proc/config.gz``, or None where this machine shows no configuration.

    Args:
        missing: The options that the board's kernel is built without.
        machine: This machine's.
    """
    try:
        text = gzip.decompress(machine.read_bytes()).decode()
    except OSError:
        return None
    return gzip.compress(kernel_config(text, missing).encode(), mtime=0)
