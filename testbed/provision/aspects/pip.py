"""How pip installs into the managed environment of a host: from an index, or from a bundle that is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import unquote

from testbed.hosts.facts import Facts
from testbed.hosts.payload import VENV, shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Finding
from testbed.provision.bundle import REMOTE, Bundle, taken_away, target_of

__all__ = ["INSTALL_TIMEOUT_S", "bundled_finding", "bundled_steps", "pip_install"]

INSTALL_TIMEOUT_S = 3600.0
WHEELS = f"{REMOTE}/wheels"


def pip_install(
    host: str, requirements: Sequence[str], options: Sequence[str] = (), title: str = ""
) -> Command:
    """Return the step that installs requirements.

    Args:
        host: The host's name.
        requirements: What pip is to install.
        options: Further options of pip, quoted already.
        title: A few words for people.
    """
    words = [
        shell_path(f"{VENV}/bin/python"),
        "-m pip install --no-input --disable-pip-version-check --progress-bar off --quiet",
        *options,
        *(shell_path(each) for each in requirements),
    ]
    return Command(host, " ".join(words), title or "install Python packages", INSTALL_TIMEOUT_S)


def bundled_steps(host: str, facts: Facts, bundle: Bundle, requirements: Sequence[str]) -> Iterator[Step]:
    """Yield the steps that send the wheels of some requirements, install them, and take the files away again.

    Where the bundle has no such wheels, pip fails for want of them; :func:`bundled_finding` says so before.
    """
    yield Command(
        host, f"rm -rf {shell_path(WHEELS)} && mkdir -p {shell_path(WHEELS)}", "make room for wheels"
    )
    yield from bundle.puts(host, bundle.wheels_for(facts, requirements) or (), WHEELS)
    names = [
        unquote(each.partition("#")[0].rpartition("/")[2]) if "://" in each else each for each in requirements
    ]
    wanted = [f"{WHEELS}/{name}" if name.endswith(".whl") else name for name in names]
    yield pip_install(host, wanted, ["--no-index", f"--find-links {shell_path(WHEELS)}"])
    yield Command(host, taken_away(WHEELS), "take the wheels away again")


def bundled_finding(
    host: str, item: str, facts: Facts, bundle: Bundle | None, requirements: Sequence[str]
) -> Iterator[Finding]:
    """Yield a failure where a bundle is used and has not what is about to be installed."""
    if bundle is None or bundle.wheels_for(facts, requirements) is not None:
        return
    target = target_of(facts) or "a Python that is not known"
    text = f"the bundle {bundle.folder} has no {', '.join(requirements)} for {target}"
    yield Finding(host, "failure", item, text, f"make it anew: `testbed bundle {bundle.folder}`")
