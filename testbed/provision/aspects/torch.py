"""torch from the source that the inventory names for the host's JetPack, and whether it computes rightly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.boards import kinds
from testbed.config.inventory import Host
from testbed.config.torch import TorchSource
from testbed.hosts.facts import Facts
from testbed.hosts.payload import VENV, shell_path
from testbed.hosts.steps import Command, Put, Step
from testbed.provision.aspect import Change, Finding
from testbed.provision.aspects.pip import bundled_finding, bundled_steps, pip_install
from testbed.provision.aspects.python import IMPORT_ITEMS, recipe_of
from testbed.provision.bundle import Bundle

__all__ = ["NOTE", "Torch", "torch_recipe", "torch_requirements"]

NOTE = f"{VENV}/torch.json"
SOURCE_HINT = "name NVIDIA's own wheels for each JetPack in the inventory: `torch: {6: {index: ...}}`"


@dataclass(frozen=True)
class Torch:
    """torch in a managed environment.

    It is installed by itself from its source, and what it needs afterwards from where the other packages come from: so
    pip never prefers a build of the general index, which on a board's architecture has no GPU.

    Its record: whether torch from a source was ``there`` before.

    Attributes:
        bundle: Where packages come from instead of the source.
    """

    bundle: Bundle | None = None
    item: str = "torch"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield what has to change."""
        source, environment = host.torch.source(facts.jetpack), facts.environment
        if source is None or not host.python.manage:
            return
        recipe, fresh = torch_recipe(source), environment.recipe != recipe_of(host)
        lost = "torch" in environment.errors or environment.error is not None
        if not fresh and not lost and environment.torch_recipe == recipe:
            return
        steps: list[Step] = [Command(host.name, f"rm -f {shell_path(NOTE)}", "begin anew with torch")]
        if self.bundle is not None:
            steps += bundled_steps(host.name, facts, self.bundle, torch_requirements(source))
        else:
            steps += _install(host, source)
        text = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
        steps.append(Put(host.name, text.encode(), NOTE, "note where torch came from"))
        before = "none" if environment.torch_recipe is None or fresh else _words(environment.torch_recipe)
        yield Change(
            host.name,
            self.item,
            "install torch",
            before,
            f"{', '.join(source.packages)} from a bundle" if self.bundle else _words(recipe),
            tuple(steps),
            recorded={"there": environment.torch_recipe is not None},
        )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield what no change puts right."""
        source = host.torch.source(facts.jetpack)
        if source is not None and any(change.item == self.item for change in changes):
            yield from bundled_finding(host.name, self.item, facts, self.bundle, torch_requirements(source))
        yield from self._source(host, facts, source)
        if not any(change.item in IMPORT_ITEMS for change in changes):
            yield from self._computation(host, facts)

    def _source(self, host: Host, facts: Facts, source: TorchSource | None) -> Iterator[Finding]:
        """Yield a warning where a board's torch would come from the general index."""
        if not (host.is_device and facts.l4t and host.python.manage):
            return
        named = any(re.match(r"torch(?![\w-])", package) for package in host.python.packages)
        general = source.general if source is not None else named and host.python.index is None
        if general and facts.cuda is None and self.bundle is None:
            text = "its torch comes from the general index, whose builds for this processor have no GPU"
            yield Finding(host.name, "warning", self.item, text, SOURCE_HINT)

    def _computation(self, host: Host, facts: Facts) -> Iterator[Finding]:
        environment = facts.environment
        if facts.torch is None:
            return
        where = "GPU" if facts.cuda else "CPU"
        if environment.torch_right is False:
            reason = environment.torch_error or "a product of two matrices came out wrong"
            text = f"torch {facts.torch} does not compute on the {where}: {reason}"
            hint = "a build for another JetPack or another GPU? " + SOURCE_HINT
            yield Finding(host.name, "failure", self.item, text, hint)
        expected = _capability(host)
        if facts.capability and expected and facts.capability != expected:
            text = f"its GPU has compute capability {facts.capability}, and a {host.board} has {expected}"
            hint = "is the host's `board` in the inventory the right one?"
            yield Finding(host.name, "failure", self.item, text, hint)
        if not (host.is_device and facts.l4t) or facts.cuda is not None:
            return
        if environment.torch_built:
            text = (
                f"torch {facts.torch} is built for CUDA {environment.torch_built} and finds no GPU: "
                "the device runs on its CPU"
            )
            hint = "is that the CUDA of this JetPack, and is the user in the groups video and render?"
            yield Finding(host.name, "warning", self.item, text, hint)
        else:
            text = "torch has no GPU here: the device runs on its CPU"
            yield Finding(host.name, "note", self.item, text, SOURCE_HINT)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield nothing but the end of the note: torch is in the environment, which goes as a whole if it was made."""
        if not recorded.get("there"):
            yield Command(host.name, f"rm -f {shell_path(NOTE)}", "forget where torch came from")


def _install(host: Host, source: TorchSource) -> Iterator[Step]:
    options, wanted = ["--no-deps"], list(source.packages)
    if source.index:
        options.append(f"--index-url {shell_path(source.index)}")
    elif source.find_links:
        options += ["--no-index", f"--find-links {shell_path(source.find_links)}"]
    elif source.wheels:
        wanted = list(source.wheels)
    index = [f"--index-url {shell_path(host.python.index)}"] if host.python.index else []
    if not source.general:
        # Over what is there: a build of another source may have the same version.
        yield pip_install(host.name, wanted, [*options, "--force-reinstall"], "install torch")
        # The names alone: any version that is there will do, and only what it needs is fetched.
        wanted = [_name(package) for package in source.packages]
    yield pip_install(host.name, wanted, index, "install what torch needs")


def torch_recipe(source: TorchSource) -> dict[str, Any]:
    """Return where torch comes from, as an environment notes it."""
    return source.model_dump(mode="json")


def torch_requirements(source: TorchSource) -> list[str]:
    """Return what a bundle must hold for a source."""
    return [*(source.wheels or source.packages)]


def _name(requirement: str) -> str:
    """Return the name in a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+(?:\[[^\]]*\])?", requirement)
    return match[0] if match else requirement


def _words(recipe: Mapping[str, Any]) -> str:
    source = recipe.get("index") or recipe.get("find_links") or "the general index"
    if recipe.get("wheels"):
        return ", ".join(wheel.partition("#")[0].rpartition("/")[2] for wheel in recipe["wheels"])
    return f"{', '.join(recipe.get('packages', ()))} from {source}"


def _capability(host: Host) -> str | None:
    found = kinds.kind(host.board) if host.board else None
    return found.compute_capability if found else None
