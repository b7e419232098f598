"""What all campaign files share: a lab, repeats, scenarios of links, telemetry. What is compared in them differs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field, PrivateAttr

from testbed.config.model import Count, FilePath, Model, Name, Problem, readable, validate
from testbed.config.scenario import DEFAULT, LinkScenario
from testbed.config.shaping import shaping_problems
from testbed.config.yaml import Document, Place
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.config.inventory import Inventory

__all__ = ["CampaignBase", "Power", "Telemetry", "Verify", "check_campaign", "doubled", "parsed"]


class Telemetry(Model):
    """How often each device is asked about itself."""

    power_hz: Annotated[float, Field(strict=True, gt=0, le=100)] = 20.0
    """Readings of the power rails a second."""
    jtop_hz: Annotated[float, Field(strict=True, gt=0, le=10)] = 2.0
    """Readings of jtop a second."""


class Power(Model):
    """How the boards are set while the campaign runs; each is put back at its end."""

    modes: Annotated[dict[Name, Annotated[str, Field(min_length=1)]], Field(default_factory=dict)]
    """The power mode of each device by its name, such as `MAXN`; `default` stands for those that are not named."""
    jetson_clocks: Annotated[bool, Field(strict=True)] = False
    """Whether all clocks are held at their greatest, by NVIDIA's jetson_clocks."""
    settle_s: Annotated[float, Field(strict=True, ge=0, le=600)] = 2.0
    """How long is waited before anything is measured, in seconds."""

    def mode_of(self, device: str) -> str | None:
        """Return the power mode that a device is to be in; None where it is left as it is."""
        return self.modes.get(device, self.modes.get(DEFAULT))


class Verify(Model):
    """How the links are checked before a scenario."""

    message_bytes: Annotated[tuple[Count, ...], Field(min_length=1)] = (4096, 65536)
    """The sizes of the messages that are timed."""
    repeats: Count = 5
    """How many messages of each size."""
    tolerance: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.05
    """How far a time may be from the expected one, as a share of it."""


class CampaignBase(Model):
    """One campaign: everything that is compared, in every scenario, several times."""

    campaign: Name
    """The campaign's name; runs are named after it."""
    inventory: FilePath
    """The inventory of the lab, from the folder of this file."""
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    """What all random choices follow from."""
    repeats: Count = 1
    """How many times each of what is compared runs in each scenario."""
    scenarios: Annotated[tuple[LinkScenario, ...], Field(min_length=1)]
    """The scenarios that it is compared in."""
    telemetry: Telemetry = Telemetry()
    """How often each device is asked about itself."""
    verify: Verify = Verify()
    """How the links are checked."""
    power: Power | None = None
    """How the boards are set while it runs; they are left as they are where it is left out."""
    _document: Document | None = PrivateAttr(default=None)

    workload: str
    """What runs on the lab."""

    @property
    @abstractmethod
    def compared_are(self) -> str:
        """What is compared, in the plural."""

    @property
    @abstractmethod
    def compared(self) -> tuple[tuple[str, ...], ...]:
        """The names of what is compared. Those of one group run interleaved, and the groups follow each other."""

    def lab_problems(self, inventory: Inventory) -> Iterator[Problem]:
        """Yield what the campaign asks for and a lab has not or cannot give.

        Args:
            inventory: The lab's inventory.
        """
        yield from self._link_problems(inventory)
        yield from shaping_problems(self, inventory)
        yield from self._power_problems(inventory)

    def lab_file(self, other: Path | None = None) -> Path:
        """Return the lab's inventory file: another one than the campaign's, or the campaign's own.

        Args:
            other: The other one.

        Raises:
            InputError: The campaign's own cannot be read.
        """
        if other is not None:
            return other
        try:
            return readable(self.inventory)
        except ValueError as error:
            raise self.mistake((("inventory",), str(error)), hint="`-i FILE` takes another lab") from None

    def taking_part(self, inventory: Inventory, limit: Sequence[str]) -> Inventory:
        """Return the lab with the devices that take part.

        Args:
            inventory: The lab's inventory.
            limit: Only these devices; all where it is empty.

        Raises:
            InputError: The lab has no such device, or it cannot do without those that are left out.
        """
        return inventory.limited(limit)

    def scenario(self, name: str) -> LinkScenario:
        """Return one scenario by name."""
        return next(scenario for scenario in self.scenarios if scenario.name == name)

    def mistake(self, *problems: tuple[Place, str], hint: str = "") -> InputError:
        """Return the error that names places of the campaign file, each with what is wrong there."""
        document = self._document or Document(Path("campaign"), None, {}, "")
        lines = [document.problem(place, text) for place, text in problems]
        if len(lines) == 1:
            return InputError(lines[0], hint=hint)
        return InputError(f"{document.file}: {len(lines)} mistakes", problems=lines, hint=hint)

    @property
    def text(self) -> str:
        """The campaign file as it was read, or the campaign as JSON where there was none."""
        if self._document is None:
            return self.model_dump_json(indent=1)
        return self._document.text

    def _scenario_problems(self) -> Iterator[Problem]:
        from testbed.links.channels.check import scenario_problems

        yield from doubled("scenarios", [scenario.name for scenario in self.scenarios])
        for number, scenario in enumerate(self.scenarios):
            for problem in scenario_problems(scenario):
                yield Problem(("scenarios", number, *problem.place), problem.text)

    def _link_problems(self, inventory: Inventory) -> Iterator[Problem]:
        from testbed.links.channels.check import lacking_devices, unknown_devices

        devices = [device.name for device in inventory.devices]
        asked = self._linked(devices)
        for number, scenario in enumerate(self.scenarios):
            problems = [*unknown_devices(scenario, devices)]
            if inventory.network.shaping != "none":  # links that nobody shapes need no rates
                problems += lacking_devices(scenario, asked)
            for problem in problems:
                yield Problem(("scenarios", number, *problem.place), problem.text)

    def _power_problems(self, inventory: Inventory) -> Iterator[Problem]:
        from testbed.config.inventory import no_device

        devices = [device.name for device in inventory.devices]
        for name in self.power.modes if self.power else ():
            if name not in (DEFAULT, *devices):
                yield Problem(("power", "modes", name), no_device(name, devices))

    def _linked(self, devices: Sequence[str]) -> Sequence[str]:
        """Return which devices of a lab need links."""
        return devices


C = TypeVar("C", bound=CampaignBase)


def parsed(document: Document, model: type[C]) -> C:
    """Return the campaign of one workload that a file holds.

    Args:
        document: The file as it was read.
        model: The workload's kind of campaign.

    Raises:
        InputError: The file holds a mistake; one line for each.
    """
    campaign = validate(document, model)
    campaign._document = document
    return campaign


def check_campaign(campaign: CampaignBase, inventory: Inventory) -> None:
    """Check what a campaign says about devices against the lab.

    Args:
        campaign: The campaign.
        inventory: The lab's inventory.

    Raises:
        InputError: The campaign names a device that the lab has not, leaves one without a link, or asks for links
            that the lab's shaping cannot give.
    """
    # What is wrong with a default is so for several devices.
    problems = list(dict.fromkeys(campaign.lab_problems(inventory)))
    if problems:
        raise campaign.mistake(*((problem.place, problem.text) for problem in problems))


def doubled(key: str, names: Sequence[str]) -> Iterator[Problem]:
    """Yield the entries of a list whose name another one before them has.

    Args:
        key: The list's key.
        names: The entries' names.
    """
    for number, name in enumerate(names):
        first = names.index(name)
        if first < number:
            yield Problem((key, number, "name"), f"{name} is a name already", see=(key, first, "name"))
