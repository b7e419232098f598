"""What has to change on a host, as a pure function of what it is and what it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.payload import CODE, HOME, VENV, shell_path
from testbed.hosts.steps import Command, Put, Step
from testbed.provision.code import PayloadCode

__all__ = ["Change", "Desired", "desired_state", "plan_provision"]

INSTALL_TIMEOUT_S = 3600.0
FOLDERS = {".": 0o700, "code": 0o755, "objects": 0o755, "services": 0o755, "runs": 0o755, "models": 0o755}


@dataclass(frozen=True)
class Change:
    """One difference between a host and what it should be.

    Attributes:
        host: The host's name.
        item: What differs, in one word.
        title: What is done, in a few words.
        before: What there is.
        after: What there will be.
        steps: What does it, in order.
        reconnect: Whether it takes effect with the next login.
    """

    host: str
    item: str
    title: str
    before: str
    after: str
    steps: tuple[Step, ...]
    reconnect: bool = False


@dataclass(frozen=True)
class Desired:
    """What a host should be.

    Attributes:
        folders: The permission bits of the folders in ``~/.testbed``.
        recipe: What the managed Python environment is made from; None where it is not managed.
        jtop: Whether the jtop service should run and let the user in.
    """

    folders: Mapping[str, int] = field(default_factory=lambda: dict(FOLDERS))
    recipe: Mapping[str, Any] | None = None
    jtop: bool = False


def desired_state(host: Host) -> Desired:
    """Return what a host of the inventory should be."""
    python = host.python
    recipe = {
        "interpreter": python.interpreter,
        "packages": list(python.packages),
        "index": python.index,
        "system_packages": python.system_packages,
    }
    return Desired(recipe=recipe if python.manage else None, jtop=host.is_device)


def plan_provision(
    host: Host, facts: Facts, code: PayloadCode, desired: Desired | None = None
) -> list[Change]:
    """Return what has to change on a host; nothing where it is as it should be.

    Args:
        host: The host.
        facts: What it is.
        code: The payload code that it should have.
        desired: What it should be; by the inventory where left out.
    """
    desired = desired or desired_state(host)
    return [
        *_folders(host, facts, desired),
        *_code(host, facts, code),
        *_environment(host, facts, desired),
        *_jtop(host, facts, desired),
    ]


def _folders(host: Host, facts: Facts, desired: Desired) -> Iterator[Change]:
    wrong = {name: mode for name, mode in desired.folders.items() if facts.folders.get(name) != mode}
    if not wrong:
        return
    home = shell_path(HOME)
    paths = {name: home if name == "." else shell_path(f"{HOME}/{name}") for name in wrong}
    parts = [f"mkdir -p {' '.join(paths.values())}"]
    for mode in sorted(set(wrong.values())):
        chosen = " ".join(paths[name] for name in wrong if wrong[name] == mode)
        parts.append(f"chmod {mode:o} {chosen}")
    there = [name for name in wrong if name in facts.folders]
    before = "other permissions" if there else "missing"
    names = ", ".join("~/.testbed" if name == "." else name for name in wrong)
    command = Command(host.name, " && ".join(parts), "make folders")
    yield Change(host.name, "folders", "make folders", before, names, (command,))


def _code(host: Host, facts: Facts, code: PayloadCode) -> Iterator[Change]:
    digest = code.digest
    whole = facts.code.get(digest) == digest
    if whole and facts.code_current == digest:
        return
    steps: list[Step] = []
    if not whole:
        packed, folder, fresh = f"{digest}.tar.gz", digest, f"{digest}.new"
        unpack = [
            f"cd {shell_path(CODE)}",
            f"rm -rf {fresh} {folder}",
            f"mkdir {fresh}",
            f"tar -xzf {packed} -C {fresh}",
            f"mv {fresh} {folder}",
            f"rm {packed}",
        ]
        steps.append(Put(host.name, code.archive(), f"{CODE}/{packed}", "send payload code"))
        steps.append(Command(host.name, " && ".join(unpack), "unpack payload code"))
    link = f"cd {shell_path(HOME)} && ln -sfn code/{digest} current.new && mv -T current.new current"
    steps.append(Command(host.name, link, "switch to the payload code"))
    before = facts.code_current or "none"
    if before == digest:
        before = f"{digest}, damaged"
    yield Change(host.name, "code", "send payload code", before, digest, tuple(steps))


def _environment(host: Host, facts: Facts, desired: Desired) -> Iterator[Change]:
    recipe, environment = desired.recipe, facts.environment
    if recipe is None or (environment.recipe == recipe and environment.error is None):
        return
    python = shell_path(f"{VENV}/bin/python")
    site = " --system-site-packages" if recipe["system_packages"] else ""
    interpreter = shell_path(recipe["interpreter"])
    make = (
        f"rm -f {shell_path(f'{VENV}/recipe.json')} && {interpreter} -m venv --clear{site} {shell_path(VENV)}"
    )
    steps: list[Step] = [Command(host.name, make, "make the Python environment", 600.0)]
    if recipe["packages"]:
        words = [python, "-m pip install --no-input --disable-pip-version-check --progress-bar off --quiet"]
        if recipe["index"]:
            words.append(f"--index-url {shell_path(recipe['index'])}")
        words += [shell_path(package) for package in recipe["packages"]]
        steps.append(Command(host.name, " ".join(words), "install Python packages", INSTALL_TIMEOUT_S))
    text = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
    steps.append(Put(host.name, text.encode(), f"{VENV}/recipe.json", "note what it was made from"))
    before = "none"
    if environment.recipe is not None:
        before = "broken" if environment.error else _recipe_words(environment.recipe)
    elif environment.error is None and environment.version:
        before = "not finished"
    after = _recipe_words(recipe)
    yield Change(host.name, "python", "make the Python environment", before, after, tuple(steps))


def _recipe_words(recipe: Mapping[str, Any]) -> str:
    packages = ", ".join(recipe.get("packages", ())) or "no packages"
    index = f" from {recipe['index']}" if recipe.get("index") else ""
    return f"{recipe.get('interpreter')} with {packages}{index}"


def _jtop(host: Host, facts: Facts, desired: Desired) -> Iterator[Change]:
    jtop = facts.jtop
    if not desired.jtop or jtop.program is None:
        return
    if jtop.group and not jtop.member:
        user = facts.user or host.user
        command = Command(host.name, f"usermod -aG jtop {shell_path(user)}", "let the user in", become=True)
        yield Change(
            host.name,
            "jtop group",
            "let the user talk to jtop",
            f"{user} is not in the group jtop",
            f"{user} is in the group jtop",
            (command,),
            reconnect=True,
        )
    if not jtop.socket and facts.systemd and jtop.unit:
        # The unit is started at once and the socket comes a little later.
        wait = "i=0; while [ ! -S /run/jtop.sock ] && [ $i -lt 50 ]; do sleep 0.2; i=$((i+1)); done"
        shell = f"systemctl restart jtop.service && {{ {wait}; test -S /run/jtop.sock; }}"
        command = Command(host.name, shell, "start the jtop service", become=True)
        yield Change(
            host.name, "jtop service", "start the jtop service", "not running", "running", (command,)
        )
