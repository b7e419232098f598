"""The inventory: which hosts a lab has, how to reach them and what they are."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, model_validator
from pydantic.json_schema import SkipJsonSchema

from testbed.boards.kinds import refusal
from testbed.config.mirror import Mirror, mirror_problems
from testbed.config.model import FilePath, Model, Name, Port, Problem, Rate, problems_error, validate
from testbed.config.system import Clock, DebianPackage, Disk, GroupName, Memory
from testbed.config.torch import SourceAddress, TorchSources
from testbed.config.yaml import Place, read_yaml
from testbed.errors import InputError

__all__ = ["Host", "Inventory", "Network", "Pace", "Python", "Role", "load_inventory", "no_device"]

Role = Literal["base_station", "device"]

_ADDRESS = r"^[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?$"
_FIELD = re.compile(r"\{([^{}]*)\}")

InterfaceName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_.:@-]{1,15}$",
        json_schema_extra={"expected": "the name of a network interface"},
    ),
]


def _multicast(text: str) -> str:
    address, colon, port = text.rpartition(":")
    try:
        good = bool(colon) and port.isdigit() and ipaddress.IPv4Address(address).is_multicast
    except ValueError:
        good = False
    if not good or not 1 <= int(port) <= 65535:
        raise ValueError(
            f"an IPv4 multicast address with a port was expected, such as 239.83.0.1:7090, not {text!r}"
        )
    return text


def _address(text: str) -> str:
    # What is digits and dots alone is no host name: the resolver would take it for an address, as far as it is one.
    try:
        if re.fullmatch(r"[0-9.]+", text):
            ipaddress.IPv4Address(text)
    except ValueError:
        raise ValueError(f"an IPv4 address or a host name was expected, not {text!r}") from None
    return text


Multicast = Annotated[
    str,
    AfterValidator(_multicast),
    Field(json_schema_extra={"expected": "an IPv4 multicast address with a port, such as `239.83.0.1:7090`"}),
]


class Python(Model):
    """Which Python runs the payload code on a host."""

    interpreter: Annotated[str, Field(min_length=1)] = "python3"
    """The interpreter that runs the payload code, or that makes its environment."""
    manage: Annotated[bool, Field(strict=True)] = True
    """Whether testbed makes an environment (`~/.testbed/venv`) and installs `packages` there."""
    packages: tuple[str, ...] = ()
    """What pip installs in a managed environment, such as `torch==2.5.0`."""
    index: SourceAddress | None = None
    """Where pip looks for packages: the address of an index, for the wheels of the host's JetPack."""
    system_packages: Annotated[bool, Field(strict=True)] = True
    """Whether a managed environment also sees what is installed on the host, such as jetson-stats."""


class Pace(Model):
    """How fast an emulated board computes: a worker waits until such a board would have been done."""

    ops_per_s: Rate
    """Operations a second."""
    bytes_per_s: Rate
    """Bytes of weights read a second."""


class Network(Model):
    """The data plane: its ports, and what shapes its links."""

    artifact_port: Port = 7080
    """Where the base station and mirrors serve objects."""
    artifact_mbit: Rate | None = None
    """What one host may take of a server of objects, in Mbit/s; everything where it is left out."""
    artifact_mirrors: tuple[Mirror, ...] = ()
    """Who gives out objects before the base station is asked: devices, which pull first, and plain web servers that
    hold them as `/objects/SHA256`."""
    data_port: Port = 7070
    """Where each device's worker listens."""
    probe_port: Port = 7071
    """Where each device answers link probes; shaped together with the data port."""
    shaping: Literal["bs", "device", "pacing", "none"] = "bs"
    """What shapes the links: the base station both ways, it and each `device` one way each, the senders' sockets
    (`pacing`), or nothing: real radio links are only recorded."""
    leaf: Literal["auto", "tbf", "netem", "line"] = "auto"
    """What gives a kernel-shaped link its rate: a token bucket, netem, or the user-space line; `auto` takes what
    the host's kernel has."""
    interface: InterfaceName | None = None
    """The base station's interface towards the devices; the one that routes to them where it is left out."""
    wifi_interface: InterfaceName | None = "wlan0"
    """Which interface of each device is recorded where nothing is shaped; null for none."""
    metrics_port: Port | None = None
    """Where base station and workers serve Prometheus metrics to whoever asks; nowhere where it is left out."""
    multicast: Multicast | None = None
    """The address and port by which one frame of a broadcast reaches all users, such as `239.83.0.1:7090`; each user is
    sent a copy where it is left out. Only for networks that carry multicast between base station and devices."""
    security: Literal["tls", "plain"] = "tls"
    """How dispatches travel: over TLS 1.3 with certificates of the lab's own authority, or readable by whoever is on
    the network (`plain`), after a handshake that proves both ends by a shared key."""

    @model_validator(mode="after")
    def _metrics_have_a_port_of_their_own(self) -> Self:
        for key in ("artifact_port", "data_port", "probe_port"):
            if self.metrics_port == getattr(self, key):
                text = f"{self.metrics_port} is the `{key}` already; metrics need one of their own"
                raise problems_error([Problem(("network", "metrics_port"), text, see=("network", key))])
        return self

    @model_validator(mode="after")
    def _leaf_fits(self) -> Self:
        if self.shaping in {"pacing", "none"} and self.leaf != "auto":
            text = f"nothing has a leaf where `shaping` is {self.shaping}; leave this key out"
            raise problems_error([Problem(("network", "leaf"), text)])
        if self.shaping == "device" and self.leaf == "line":
            text = "the user-space line runs at the base station only, and `shaping` is device"
            raise problems_error([Problem(("network", "leaf"), text)])
        return self


class Host(Model):
    """One host."""

    name: SkipJsonSchema[str] = ""
    role: Role
    """What the host does in the lab."""
    address: Annotated[
        str,
        Field(
            pattern=_ADDRESS, max_length=253, json_schema_extra={"expected": "an IPv4 address or a host name"}
        ),
        AfterValidator(_address),
    ]
    """An IPv4 address or a host name; the base station reaches a device by the same one."""
    user: Annotated[str, Field(min_length=1)] = "root"
    """The user to log in as; one that is not root needs `sudo` without a password."""
    port: Port = 22
    """The port of the host's SSH server."""
    key_file: FilePath | None = None
    """A private key; without it the SSH agent and the keys in `~/.ssh` are tried."""
    gateway: str | None = None
    """A command whose standard input and output lead to the host's SSH server, with {address} and {port}."""
    board: str | None = None
    """The kind of board, such as `jetson-orin-nano-8gb`."""
    python: Python = Python()
    """Which Python runs the payload code."""
    torch: TorchSources = TorchSources()
    """Where torch comes from, by the host's JetPack: `5`, `6`, `7`, `other` (no Jetson), or `any`."""
    pace: Pace | None = None
    """How fast the host computes, where it is emulated."""
    power_mode: str | None = None
    """The power mode that the board should be in, by its name in its nvpmodel.conf."""
    jetson_clocks: Annotated[bool, Field(strict=True)] = False
    """Whether the board's clocks are locked at their greatest, by jetson_clocks."""
    packages: tuple[DebianPackage, ...] = ()
    """What apt installs, besides what testbed needs there itself."""
    groups: tuple[GroupName, ...] = ()
    """Groups that the user should be in, besides those that guard a board's GPU and jtop."""
    clock: Clock = Clock()
    """How right the host's clock must be, and what keeps it so."""
    memory: Memory = Memory()
    """What the host swaps to."""
    disk: Disk = Disk()
    """How much room there should be."""
    _network: Network = PrivateAttr(default_factory=Network)

    @property
    def network(self) -> Network:
        """The data plane of the lab that the host belongs to."""
        return self._network

    @property
    def is_device(self) -> bool:
        """Whether the host computes experts."""
        return self.role == "device"

    @model_validator(mode="after")
    def _gateway_is_whole(self) -> Self:
        for field in _FIELD.findall(self.gateway or ""):
            if field not in {"address", "port"}:
                place: Place = ("hosts", self.name, "gateway") if self.name else ("gateway",)
                text = f"unknown field {{{field}}}; there are {{address}} and {{port}}"
                raise problems_error([Problem(place, text)])
        return self


class Inventory(Model):
    """The hosts of one lab."""

    lab: Name
    """The lab's name."""
    defaults: Annotated[dict[str, Any], Field(exclude=True, default_factory=dict)]
    """Settings of a host for all hosts that do not say otherwise."""
    network: Network = Network()
    """The data plane: its ports, and what shapes its links."""
    known_hosts: FilePath = Path("known_hosts")
    """The file of the hosts' keys, which `testbed trust` writes; beside NAME.yaml it is NAME.known_hosts."""
    hosts: dict[Name, Host]
    """The hosts by name: one base station and at least one device."""
    emulation: dict[str, Any] | None = None
    """The settings of an emulated lab."""

    @model_validator(mode="before")
    @classmethod
    def _host_names(cls, data: Any) -> Any:
        """Give each host its name, and the defaults that it does not override."""
        if not isinstance(data, Mapping) or not isinstance(data.get("hosts"), Mapping):
            return data
        defaults = data.get("defaults") or {}
        if not isinstance(defaults, Mapping):
            return data
        hosts: dict[Any, Any] = {}
        for name, host in data["hosts"].items():
            if not isinstance(host, Mapping):
                hosts[name] = host
                continue
            if host.get("name", name) != name:
                text = "unknown key; a host's name is the key that it stands under"
                raise problems_error([Problem(("hosts", name, "name"), text)])
            hosts[name] = _merged(defaults, host) | {"name": name}
        return {**data, "hosts": hosts}

    @model_validator(mode="after")
    def _fleet_is_whole(self) -> Self:
        problems = [*self._role_problems(), *self._address_problems(), *self._board_problems()]
        if not problems:
            devices = [device.name for device in self.devices]
            problems += mirror_problems(self.network.artifact_mirrors, devices, self.base_station.name)
        if problems:
            raise problems_error(problems)
        for host in self.hosts.values():
            host._network = self.network
        return self

    def _role_problems(self) -> Iterator[Problem]:
        if not self.hosts:
            text = "the fleet is empty: one base_station and at least one device were expected"
            yield Problem(("hosts",), text)
            return
        stations = [name for name, host in self.hosts.items() if host.role == "base_station"]
        if not stations:
            yield Problem(("hosts",), "no host has the role base_station; exactly one was expected")
        for name in stations[1:]:
            text = f"a second base_station; {stations[0]} is one already"
            yield Problem(("hosts", name, "role"), text, see=("hosts", stations[0], "role"))
        if not self.devices and not stations[1:]:
            yield Problem(("hosts",), "no host has the role device; at least one was expected")

    def _address_problems(self) -> Iterator[Problem]:
        """Yield doubled addresses: host keys are recorded and links are shaped by address."""
        first: dict[str, str] = {}
        for name, host in self.hosts.items():
            other = first.setdefault(host.address.lower(), name)
            if other != name:
                text = f"{host.address} is the address of {other} too"
                yield Problem(("hosts", name, "address"), text, see=("hosts", other, "address"))

    def _board_problems(self) -> Iterator[Problem]:
        for name, host in self.hosts.items():
            why = refusal(host.board or "")
            if why is not None:
                yield Problem(("hosts", name, "board"), why)

    @property
    def base_station(self) -> Host:
        """The one base station."""
        return next(host for host in self.hosts.values() if host.role == "base_station")

    @property
    def devices(self) -> list[Host]:
        """The devices, in the inventory's order."""
        return [host for host in self.hosts.values() if host.is_device]

    def host(self, name: str) -> Host:
        """Return one host.

        Raises:
            InputError: The lab has no host of that name.
        """
        if name not in self.hosts:
            close = difflib.get_close_matches(name, self.hosts, n=1)
            hint = f"did you mean {close[0]}?" if close else f"its hosts are {', '.join(self.hosts)}"
            raise InputError(f"the lab {self.lab} has no host {name!r}", hint=hint)
        return self.hosts[name]

    def select(self, names: Sequence[str] | None = None) -> list[Host]:
        """Return the named hosts (all, where none is named) in the inventory's order.

        Raises:
            InputError: The lab has no host of a name.
        """
        wanted = {self.host(name).name for name in names or ()}
        return [host for host in self.hosts.values() if not wanted or host.name in wanted]

    def limited(self, names: Sequence[str]) -> Inventory:
        """Return the inventory with the named devices only (all, where none is named); the base station stays.

        Raises:
            InputError: The lab has no host of a name, or no device would be left.
        """
        if not names:
            return self
        wanted = {host.name for host in self.select(names)} | {self.base_station.name}
        hosts = {name: host for name, host in self.hosts.items() if name in wanted}
        if len(hosts) == 1:
            raise InputError(
                "--limit leaves no device", hint=f"name at least one device of the lab {self.lab}"
            )
        return self.model_copy(update={"hosts": hosts})

    def resolved(self) -> dict[str, Any]:
        """Return the inventory as plain data for a run's records, without the paths of keys."""
        return self.model_dump(mode="json", exclude={"known_hosts": True, "hosts": {"__all__": {"key_file"}}})


def no_device(name: str, devices: Sequence[str]) -> str:
    """Return what is said of a device that a file names and the lab has not."""
    close = difflib.get_close_matches(name, devices, n=1)
    there = f"did you mean {close[0]}?" if close else f"its devices are {', '.join(devices)}"
    return f"the lab has no device {name!r}; {there}"


def _merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a host's own settings over the defaults; settings that have parts are merged part by part."""
    result = {**defaults, **own}
    for key in ("python", "pace", "clock", "memory", "disk"):
        if isinstance(defaults.get(key), Mapping) and isinstance(own.get(key), Mapping):
            result[key] = {**defaults[key], **own[key]}
    return result


def load_inventory(path: Path) -> Inventory:
    """Read an inventory file.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be read or holds a mistake; one line for each.
    """
    try:
        document = read_yaml(path)
    except InputError as error:
        if isinstance(error.__context__, FileNotFoundError):
            error.hint = "name the lab's file, most verbs by `-i FILE`, or set TESTBED_INVENTORY to it"
        raise
    data = document.data
    if isinstance(data, dict):
        data = {"known_hosts": f"{path.stem}.known_hosts", **data}

    def relocate(place: Place) -> Place:
        """Point at the defaults where a host's own lines do not hold what is wrong."""
        if len(place) > 2 and place[0] == "hosts" and place not in document.lines:
            default = ("defaults", *place[2:])
            if default in document.lines:
                return default
        return place

    return validate(document, Inventory, data=data, relocate=relocate)
