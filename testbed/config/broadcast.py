"""The campaign file of semantic broadcast: which images go to which users, by which schemes, over which channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from payloads.semcast.spec import MAX_SLOTS
from payloads.station.specs import SpecError, check_name
from testbed.config.broadcast_scheme import Kind, Scheme, SchemeName, SnrDb
from testbed.config.campaign_base import CampaignBase, doubled
from testbed.config.inventory import Inventory, no_device
from testbed.config.known_models import read_config
from testbed.config.model import Count, FilePath, Model, Name, Problem, problems_error
from testbed.config.scenario import LinkScenario
from testbed.errors import InputError

__all__ = ["BroadcastCampaign", "BroadcastScenario", "ImageSet", "Kind", "Scheme", "SchemeName", "slots_of"]

VALUES_OF_PATCH = 192
"""An 8 x 8 patch of three colours."""

SHIPPED_SETS = ("natural-128", "natural-32")


def _ratio(value: Any) -> Any:
    """Return a bandwidth ratio such as ``1/6`` as a fraction; anything else is pydantic's to refuse."""
    if isinstance(value, str):
        over, slash, under = value.partition("/")
        if slash and over.strip().isdecimal() and under.strip().isdecimal() and int(under):
            return Fraction(int(over), int(under))
    if isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < 10:
        return Fraction(value).limit_denominator(10_000)
    return value


def _whole_symbols(ratio: Any) -> Fraction:
    if not isinstance(ratio, Fraction):
        raise ValueError(f"a ratio such as 1/6 was expected, not {ratio!r}")
    symbols = ratio * VALUES_OF_PATCH
    if symbols.denominator != 1 or symbols < 1:
        text = f"whole complex symbols for each of an image's 8 x 8 patches were expected (n/{VALUES_OF_PATCH}, as 1/6)"
        raise ValueError(f"{text}, not {ratio}")
    most = Fraction(MAX_SLOTS, 2 * VALUES_OF_PATCH)
    if ratio > most:
        raise ValueError(f"a ratio of at most {most} was expected, not {ratio}")
    return ratio


BandwidthRatio = Annotated[
    Any,
    BeforeValidator(_ratio),
    AfterValidator(_whole_symbols),
    Field(json_schema_extra={"expected": "a ratio such as 1/6", "type": ["string", "number"]}),
]
"""Complex symbols for each value of an image."""


def slots_of(ratio: Fraction) -> int:
    """Return the real numbers that are sent for each patch at a bandwidth ratio: two make a complex symbol."""
    return int(2 * ratio * VALUES_OF_PATCH)


def _between(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"a number between 0 and 1 was expected, not {value:g}")
    return value


def _share_form(value: object) -> str:
    return "parts" if isinstance(value, list | tuple) else "a part"


Part = Annotated[float, Field(strict=True), AfterValidator(_between)]
Share = Annotated[
    Annotated[Part, Tag("a part")] | Annotated[tuple[Part, ...], Tag("parts")], Discriminator(_share_form)
]
"""User 1's part, or those of all users."""


class ImageSet(Model):
    """Images, and how many pairs are made of them."""

    set: Literal["natural-128", "natural-32", "cifar-10", "stl-10", "celeba", "folder"]
    """`natural-128` or `natural-32` (held out, they come with testbed), `cifar-10`, `stl-10` or `celeba` (their test
    images), or `folder` (pictures of your own)."""
    name: Name | None = None
    """The set's name in the records; what `set` says where it is left out."""
    folder: FilePath | None = None
    """Where the images lie, if they do not come with testbed."""
    pairs: Count
    """How many pairs are sent: an image for each user, all of them different within a pair."""

    @property
    def called(self) -> str:
        """The set's name in the records."""
        return self.name or self.set


class BroadcastScenario(LinkScenario):
    """What the broadcast channel is like, and what the links do that its frames cross."""

    snr_db: Annotated[tuple[SnrDb, ...], Field(min_length=2)]
    """The users' mean signal-to-noise ratios in dB, user 1's first; no user is stronger than the one before."""
    fading: Literal["none", "rayleigh"] = "none"
    """How the channel's gain varies from frame to frame."""
    csi_error: Annotated[float, Field(strict=True, ge=0, le=10)] = 0.0
    """The variance of the error with which each gain is known, whose mean power is 1."""


class BroadcastCampaign(CampaignBase):
    """A campaign of semantic broadcast: every scheme in every scenario, several times."""

    workload: Literal["broadcast"]
    """`broadcast`: images that are broadcast to users with unequal channels."""
    users: Annotated[tuple[Name, ...], Field(min_length=2, max_length=16)]
    """The devices that the users are, user 1 first, the stronger one."""
    images: Annotated[tuple[ImageSet, ...], Field(min_length=1)]
    """The images that are sent."""
    bandwidth_ratios: Annotated[tuple[BandwidthRatio, ...], Field(min_length=1)]
    """Complex symbols for each value of an image, such as `1/6`."""
    shares: Annotated[tuple[Share, ...], Field(min_length=1)]
    """User 1's part of what is sent, between 0 and 1; with more than two users all parts, which sum to 1."""
    schemes: Annotated[tuple[Scheme, ...], Field(min_length=1)]
    """The schemes that are compared."""
    scenarios: Annotated[tuple[BroadcastScenario, ...], Field(min_length=1)]
    """The channels and links that they are compared in."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            *self._user_problems(),
            *self._image_problems(),
            *self._share_problems(),
            *doubled("schemes", [scheme.name for scheme in self.schemes]),
            *self._scheme_problems(),
            *self._snr_problems(),
            *self._scenario_problems(),
        ]
        if problems:
            raise problems_error(problems)
        return self

    def _user_problems(self) -> Iterator[Problem]:
        for number, name in enumerate(self.users):
            if self.users.index(name) < number:
                yield Problem(
                    ("users", number), f"{name} is a user already", see=("users", self.users.index(name))
                )

    def _image_problems(self) -> Iterator[Problem]:
        yield from doubled("images", [images.called for images in self.images])
        for number, images in enumerate(self.images):
            place = ("images", number, "folder")
            if images.set in SHIPPED_SETS and images.folder is not None:
                yield Problem(place, f"{images.set} comes with testbed; leave the folder out")
            elif images.set not in SHIPPED_SETS and images.folder is None:
                yield Problem(
                    place, f"{images.set} does not come with testbed: the folder of its images was expected"
                )
        for number, ratio in enumerate(self.bandwidth_ratios):
            if self.bandwidth_ratios.index(ratio) < number:
                yield Problem(("bandwidth_ratios", number), f"{ratio} stands twice")

    def _share_problems(self) -> Iterator[Problem]:
        users = len(self.users)
        for number, share in enumerate(self.shares):
            place = ("shares", number)
            if not isinstance(share, tuple):
                if users > 2:
                    yield Problem(place, f"the parts of all {users} users were expected, not one number")
            elif len(share) != users:
                yield Problem(place, f"{users} parts were expected (one a user), not {len(share)}")
            elif abs(sum(share) - 1) > 1e-6:
                yield Problem(place, f"parts that sum to 1 were expected, not to {sum(share):g}")
            if self.shares.index(share) < number:
                yield Problem(place, "it stands twice")
            elif self.parts(share)[:1] in (self.parts(one)[:1] for one in self.shares[:number]):
                yield Problem(place, "user 1 has as much already, by which the records tell shares apart")

    def _scheme_problems(self) -> Iterator[Problem]:
        names, users = [scheme.name for scheme in self.schemes], len(self.users)
        most = max(slots_of(ratio) for ratio in self.bandwidth_ratios)
        for number, scheme in enumerate(self.schemes):
            place = ("schemes", number)
            for key, text in scheme.problems(users):
                yield Problem((*place, key), text)
            if scheme.ablates is not None and (scheme.ablates not in names or scheme.ablates == scheme.name):
                yield Problem(
                    (*place, "ablates"), f"another scheme of this file was expected, not {scheme.ablates!r}"
                )
            plays = set()
            for nth, model in enumerate(scheme.models):
                config = self.configs[model]
                plays.add(config.get("scheme"))
                for text in _misfits(config, users, most):
                    yield Problem((*place, "models", nth), f"{model.name}: {text}")
                if model in scheme.models[:nth]:  # it would count as one more training
                    yield Problem((*place, "models", nth), f"{model.name} stands twice")
                try:
                    check_name(model.name)
                except SpecError as error:
                    yield Problem((*place, "models", nth), f"the folder's name: {error}")
            if len(plays) > 1:
                text = f"models of one kind were expected, not of {', '.join(sorted(map(str, plays)))}"
                yield Problem((*place, "models"), text)
        folders: dict[str, Path] = {}
        for number, scheme in enumerate(self.schemes):
            for nth, model in enumerate(scheme.models):
                if folders.setdefault(model.name, model) != model:
                    text = f"another model is called {model.name}, which the records could not tell apart"
                    yield Problem(("schemes", number, "models", nth), text)

    def _snr_problems(self) -> Iterator[Problem]:
        for number, scenario in enumerate(self.scenarios):
            place = ("scenarios", number, "snr_db")
            if len(scenario.snr_db) != len(self.users):
                yield Problem(
                    place, f"{len(self.users)} were expected (one a user), not {len(scenario.snr_db)}"
                )
            elif list(scenario.snr_db) != sorted(scenario.snr_db, reverse=True):
                yield Problem(place, "the stronger user comes first: no SNR may be above the one before it")

    @cached_property
    def configs(self) -> Mapping[Path, Mapping[str, Any]]:
        """Each model's config.json by its folder."""
        return {model: read_config(model) for scheme in self.schemes for model in scheme.models}

    @property
    def learned(self) -> tuple[Scheme, ...]:
        """The schemes whose networks run on the rack."""
        return tuple(scheme for scheme in self.schemes if scheme.kind == "learned")

    @property
    def on_paper(self) -> tuple[Scheme, ...]:
        """The schemes that the controller computes."""
        return tuple(scheme for scheme in self.schemes if scheme.kind != "learned")

    @property
    def compared_are(self) -> str:
        """What is compared, in the plural."""
        return "schemes"

    @property
    def compared(self) -> tuple[tuple[str, ...], ...]:
        """The names of the schemes: first those of the rack, interleaved, then those that are computed."""
        groups = (self.learned, self.on_paper)
        return tuple(tuple(scheme.name for scheme in group) for group in groups if group)

    def parts(self, share: float | tuple[float, ...]) -> tuple[float, ...]:
        """Return the parts of all users of one entry of ``shares``."""
        return share if isinstance(share, tuple) else (share, 1 - share)

    def scheme(self, name: str) -> Scheme:
        """Return one scheme by name."""
        return next(scheme for scheme in self.schemes if scheme.name == name)

    def scenario(self, name: str) -> BroadcastScenario:
        """Return one scenario by name."""
        return next(scenario for scenario in self.scenarios if scenario.name == name)

    def lab_problems(self, inventory: Inventory) -> Iterator[Problem]:
        """Yield what the campaign asks for and a lab has not or cannot give."""
        devices = [device.name for device in inventory.devices]
        for number, name in enumerate(self.users):
            if name not in devices:
                yield Problem(("users", number), no_device(name, devices))
        yield from super().lab_problems(inventory)

    def taking_part(self, inventory: Inventory, limit: Sequence[str]) -> Inventory:
        """Return the lab with the users' devices: no other one takes part, and none can be left out."""
        kept = {device.name for device in inventory.limited(limit).devices}
        for name in self.users:
            if name not in kept:
                raise InputError(
                    f"--limit leaves out {name}, which is a user of the campaign {self.campaign}",
                    hint="name other `users` in the campaign file",
                )
        return inventory.limited(self.users)

    def _linked(self, devices: Sequence[str]) -> Sequence[str]:
        return [name for name in self.users if name in devices]


def _misfits(config: Mapping[str, Any], users: int, most_slots: int) -> Iterator[str]:
    """Yield why a model cannot serve so many users or send so many slots."""
    if config.get("users") != users:
        yield f"it serves {config.get('users')} users, and the campaign has {users}"
    slots = config.get("slots")
    if not isinstance(slots, int) or slots < most_slots:
        most = Fraction(slots, 2 * VALUES_OF_PATCH) if isinstance(slots, int) else "none"
        yield f"its bandwidth ratio is at most {most}, and {Fraction(most_slots, 2 * VALUES_OF_PATCH)} was asked for"
