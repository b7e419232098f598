"""What a bundle must hold for a fleet, as a pure function of what its hosts are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from testbed.config.inventory import Host
from testbed.errors import InputError
from testbed.hosts.facts import Facts, assume_facts
from testbed.provision.aspects.jtop import client_requirement
from testbed.provision.aspects.packages import missing_packages
from testbed.provision.aspects.python import recipe_of
from testbed.provision.aspects.torch import torch_requirements
from testbed.provision.bundle import target_of

__all__ = [
    "Deb",
    "Download",
    "Python",
    "debs_in",
    "debs_wanted",
    "downloads_for",
    "facts_of_jetpack",
    "pip_arguments",
    "python_of",
]

_JETPACKS = {"5": ("3.8", "2.31"), "6": ("3.10", "2.35"), "7": ("3.12", "2.39")}
_TARGET = re.compile(r"cp(\d)(\d+)-(\w+)-glibc(\d+)\.(\d+)")
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}


@dataclass(frozen=True)
class Python:
    """The Python that wheels are for.

    Attributes:
        version: Its major and minor version.
        machine: The processor architecture.
        glibc_minor: The second number of its C library's version.
    """

    version: tuple[int, int]
    machine: str
    glibc_minor: int

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms whose wheels it takes, the best ones first."""
        oldest = _OLDEST_GLIBC.get(self.machine, 17)
        many = [f"manylinux_2_{n}_{self.machine}" for n in range(self.glibc_minor, oldest - 1, -1)]
        old = ["manylinux2014", *(["manylinux2010", "manylinux1"] if self.machine == "x86_64" else [])]
        return (*many, *(f"{name}_{self.machine}" for name in old), f"linux_{self.machine}")

    def markers(self) -> dict[str, str]:
        """Return what environment markers say there; pip by itself asks the Python that it runs in."""
        text = ".".join(map(str, self.version))
        return {
            "python_version": text,
            "python_full_version": f"{text}.0",
            "implementation_name": "cpython",
            "implementation_version": f"{text}.0",
            "platform_python_implementation": "CPython",
            "platform_machine": self.machine,
            "platform_system": "Linux",
            "sys_platform": "linux",
            "os_name": "posix",
            "platform_release": "",
            "platform_version": "",
        }


@dataclass(frozen=True)
class Download:
    """One call of pip for one kind of Python, and what to call its wheels in the bundle.

    Attributes:
        target: The kind of Python.
        requirements: What will be asked of the bundle.
        first: Requirements that are fetched by themselves, without what they need.
        first_options: Where those come from, as options of pip.
        rest: What is fetched with all that it needs; where there is a first, this stands for what those need.
        options: Where that comes from, as options of pip.
        needed: Whether it is certain to be installed; what only may be is left out where there are no wheels of it.
    """

    target: str
    requirements: tuple[str, ...]
    rest: tuple[str, ...]
    options: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    first_options: tuple[str, ...] = ()
    needed: bool = True


@dataclass(frozen=True)
class Deb:
    """One Debian package that a host lacks.

    Attributes:
        address: Where it is.
        name: Its file's name.
        bytes: Its size.
        digest: Its digest, as apt writes it: ``SHA256:...``; empty where apt knows none, which is not enough.
    """

    address: str
    name: str
    bytes: int
    digest: str = ""


def python_of(target: str) -> Python:
    """Return the Python that a target names."""
    match = _TARGET.fullmatch(target)
    if match is None:
        raise InputError(
            f"no wheels can be chosen for {target!r}: cp310-aarch64-glibc2.35 is one that they can"
        )
    return Python((int(match[1]), int(match[2])), match[3], int(match[5]))


def downloads_for(fleet: Iterable[tuple[Host, Facts]]) -> list[Download]:
    """Return what pip has to fetch, each thing once.

    Args:
        fleet: The hosts, each with what it is.
    """
    found = dict.fromkeys(download for host, facts in fleet for download in _downloads(host, facts))
    return [one for one in found if one.needed or replace(one, needed=True) not in found]


def _downloads(host: Host, facts: Facts) -> Iterator[Download]:
    target, python = target_of(facts), host.python
    if target is None or not python.manage:
        return
    index = ("--index-url", python.index) if python.index else ()
    if python.packages:
        yield Download(target, python.packages, python.packages, index)
    source = host.torch.source(facts.jetpack)
    if source is not None:
        wanted = tuple(torch_requirements(source))
        if source.general:
            yield Download(target, wanted, wanted, index)
        else:
            options: tuple[str, ...] = ("--index-url", source.index) if source.index else ()
            if source.find_links:
                options = ("--no-index", "--find-links", source.find_links)
            yield Download(target, wanted, (), index, wanted, options)
    running, fresh = facts.jtop.running_version, facts.environment.recipe != recipe_of(host)
    lacking = client_requirement(host, facts)
    # Whether a fresh environment will see the system's client is known only when it is there. Mostly it does, and of
    # the versions before 7 there are no wheels.
    if host.is_device and running is not None and (fresh or lacking is not None):
        client = f"jetson-stats=={running}"
        yield Download(target, (client,), (client,), index, needed=lacking is not None)


def pip_arguments(
    python: Python, requirements: Sequence[str], options: Sequence[str], folder: str, *, deps: bool
) -> list[str]:
    """Return the arguments of pip that fetch wheels for another Python than this one."""
    major, minor = python.version
    abis = (f"cp{major}{minor}", "abi3", "none")
    return [
        "download",
        *("--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--quiet"),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", f"{major}.{minor}"),
        *(word for abi in abis for word in ("--abi", abi)),
        *(word for platform in python.platforms for word in ("--platform", platform)),
        *([] if deps else ["--no-deps"]),
        *options,
        *("--dest", folder),
        *requirements,
    ]


def debs_wanted(host: Host, facts: Facts) -> tuple[str, ...]:
    """Return the Debian packages that a host lacks, by name."""
    return tuple(missing_packages(host, facts))


def debs_in(text: str) -> list[Deb]:
    """Return the packages in what ``apt-get install --print-uris`` says."""
    found = []
    for line in text.splitlines():
        # The name becomes that of a file here, and a host says it: no folder is in it.
        match = re.fullmatch(r"'([^']+)' (\w[^\s/]*\.deb) (\d+) ?(\S*)", line.strip())
        if match:
            found.append(Deb(match[1], match[2].replace("%3a", "."), int(match[3]), match[4]))
    return found


def facts_of_jetpack(host: Host, jetpack: str) -> Facts:
    """Return what can be said of a board that nobody can ask, by its JetPack alone.

    Raises:
        InputError: There is no such JetPack.
    """
    major = jetpack.partition(".")[0]
    if major not in _JETPACKS:
        raise InputError(f"--jetpack: 5, 6 or 7 was expected, not {jetpack!r}")
    version, glibc = _JETPACKS[major]
    facts = assume_facts(host)
    environment = replace(facts.environment, base_version=version, glibc=glibc)
    return replace(facts, environment=environment, machine="aarch64", jetpack=major)
