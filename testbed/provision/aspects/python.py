"""The Python environment of the payload code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts, required_modules
from testbed.hosts.payload import VENV, shell_path
from testbed.hosts.steps import Command, Put, Step
from testbed.provision.aspect import Change, Finding
from testbed.provision.aspects.pip import bundled_finding, bundled_steps, pip_install
from testbed.provision.bundle import Bundle

__all__ = ["IMPORT_ITEMS", "OLDEST_PYTHON", "Python", "recipe_of"]

OLDEST_PYTHON = (3, 8)
IMPORT_ITEMS = frozenset({"python", "torch", "jtop"})
"""The aspects whose changes may change what the payload code can import."""


@dataclass(frozen=True)
class Python:
    """The Python environment of the payload code.

    Its record: whether an environment was ``there`` before.

    Attributes:
        bundle: Where packages come from instead of an index.
    """

    bundle: Bundle | None = None
    item: str = "python"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield what has to change."""
        recipe, environment = recipe_of(host), facts.environment
        if recipe is None or (environment.recipe == recipe and environment.error is None):
            return
        packages = recipe["packages"]
        site = " --system-site-packages" if recipe["system_packages"] else ""
        interpreter = shell_path(recipe["interpreter"])
        make = f"rm -f {shell_path(f'{VENV}/recipe.json')} && {interpreter} -m venv --clear{site} {shell_path(VENV)}"
        steps: list[Step] = [Command(host.name, make, "make the Python environment", 600.0)]
        if packages and self.bundle is not None:
            steps += bundled_steps(host.name, facts, self.bundle, packages)
        elif packages:
            index = [f"--index-url {shell_path(recipe['index'])}"] if recipe["index"] else []
            steps.append(pip_install(host.name, packages, index))
        text = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
        steps.append(Put(host.name, text.encode(), f"{VENV}/recipe.json", "note what it was made from"))
        before = "none"
        if environment.recipe is not None:
            before = "broken" if environment.error else _recipe_words(environment.recipe)
        elif environment.error is None and environment.version:
            before = "not finished"
        there = environment.recipe is not None or environment.version is not None
        yield Change(
            host.name,
            self.item,
            "make the Python environment",
            before,
            _recipe_words(recipe),
            tuple(steps),
            recorded={"there": there},
        )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield what no change puts right."""
        if any(change.item == self.item for change in changes):
            yield from self._makeable(host, facts)
        if not any(change.item in IMPORT_ITEMS for change in changes):
            # What will be there is judged when it is there.
            yield from self._usable(host, facts)

    def _makeable(self, host: Host, facts: Facts) -> Iterator[Finding]:
        environment = facts.environment
        yield from bundled_finding(host.name, self.item, facts, self.bundle, host.python.packages)
        if environment.base_version and _parts(environment.base_version) < OLDEST_PYTHON:
            yield self._too_old(host, environment.base_version)

    def _too_old(self, host: Host, version: str) -> Finding:
        text = f"Python {version} is too old; 3.8 or newer is needed"
        hint = "name another as the host's `python.interpreter` in the inventory"
        return Finding(host.name, "failure", self.item, text, hint)

    def _usable(self, host: Host, facts: Facts) -> Iterator[Finding]:
        environment = facts.environment
        where = "its `python.packages`" if host.python.manage else "its `python.interpreter`"
        if environment.error is not None or environment.version is None:
            text = environment.error or "the Python of the payload code does not run"
            yield Finding(host.name, "failure", self.item, text, f"see {where} in the inventory")
            return
        if _parts(environment.version) < OLDEST_PYTHON:
            yield self._too_old(host, environment.version)
        for module in required_modules(host):
            if module in environment.modules:
                continue
            text = f"{module} cannot be imported: {environment.errors.get(module, 'no reason given')}"
            hint = f"add it to {where}" if host.python.manage else f"install it for the Python of {where}"
            if module == "torch" and host.python.manage and host.torch.source(facts.jetpack) is None:
                hint = "name its source as the host's `torch`"
            yield Finding(host.name, "failure", self.item, text, f"{hint} in the inventory")

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield the removal of an environment that was not there before."""
        if not recorded.get("there"):
            yield Command(host.name, f"rm -rf {shell_path(VENV)}", "remove the Python environment")


def recipe_of(host: Host) -> dict[str, Any] | None:
    """Return what a host's environment is made from; None where testbed makes none."""
    python = host.python
    recipe = {
        "interpreter": python.interpreter,
        "packages": list(python.packages),
        "index": python.index,
        "system_packages": python.system_packages,
    }
    return recipe if python.manage else None


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _recipe_words(recipe: Mapping[str, Any]) -> str:
    packages = ", ".join(recipe.get("packages", ())) or "no packages"
    index = f" from {recipe['index']}" if recipe.get("index") else ""
    return f"{recipe.get('interpreter')} with {packages}{index}"
