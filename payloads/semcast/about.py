"""What all frames of a trial have in common, as the transmitter tells a receiver at the trial's beginning. Pure."""

from __future__ import annotations

import math
from typing import Any, Mapping, NamedTuple, Optional, Tuple

from payloads.semcast.multicast import KEY_BYTES, Group, parse_group
from payloads.semcast.spec import FADINGS, Scenario
from payloads.station.specs import SpecError, check_name
from payloads.wire.frames import FrameError

__all__ = ["About", "Air", "about_json", "about_of"]


class Air(NamedTuple):
    """Where a receiver hears frames that come by multicast.

    Attributes:
        group: The group.
        interface: The address of the receiver's interface.
        key: What the datagrams' tags are made with.
        session: The number of the trial's session.
    """

    group: Group
    interface: str
    key: bytes
    session: int


class About(NamedTuple):
    """What stays the same in a trial.

    Attributes:
        trial: The trial's name.
        seed: The campaign's seed.
        scenario: What the channel does.
        repeat: The number of the repeat.
        user: Which user the receiver is, from 1.
        models: The names of the models; a frame tells the place of its own.
        air: Where frames come by multicast; ``None`` where they come over the connection.
    """

    trial: str
    seed: int
    scenario: Scenario
    repeat: int
    user: int
    models: Tuple[str, ...]
    air: Optional[Air]


def about_json(about: About) -> Mapping[str, Any]:
    """Return what :func:`about_of` reads."""
    air = about.air
    return {
        "trial": about.trial,
        "seed": about.seed,
        "snr_db": list(about.scenario.snr_db),
        "fading": about.scenario.fading,
        "csi_error": about.scenario.csi_error,
        "repeat": about.repeat,
        "user": about.user,
        "models": list(about.models),
        "air": air
        and {
            "group": f"{air.group.address}:{air.group.port}",
            "interface": air.interface,
            "key": air.key.hex(),
            "session": air.session,
        },
    }


def about_of(value: Mapping[str, Any]) -> About:
    """Return what stays the same in a trial.

    Raises:
        FrameError: It is wrong.
    """
    try:
        snr_db = tuple(float(one) for one in value["snr_db"])
        about = About(
            check_name(value["trial"]),
            int(value["seed"]),
            Scenario(snr_db, str(value["fading"]), float(value["csi_error"])),
            int(value["repeat"]),
            int(value["user"]),
            tuple(str(name) for name in value["models"]),
            None if value["air"] is None else _air(value["air"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, SpecError) as error:
        raise FrameError(f"the beginning of a trial is wrong: {error}") from error
    _, fading, csi_error = about.scenario
    if fading not in FADINGS or not 0 <= csi_error < math.inf or not all(map(math.isfinite, snr_db)):
        raise FrameError("the beginning of a trial tells of no channel")
    if not 1 <= about.user <= len(snr_db):
        raise FrameError(f"the beginning of a trial tells of user {about.user} of {len(snr_db)}")
    return about


def _air(value: Mapping[str, Any]) -> Air:
    key = bytes.fromhex(value["key"])
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key of {KEY_BYTES} bytes was expected")
    return Air(parse_group(value["group"]), str(value["interface"]), key, int(value["session"]))
