"""Mirrors of the artifacts: which hosts beside the base station give out objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from testbed.config.model import Problem

__all__ = ["Mirror", "mirror_problems", "open_mirrors"]

_DEVICE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_EXPECTED = "the name of a device, or the address of a web server such as http://10.0.0.9:8080"


def _mirror(text: str) -> str:
    if _is_open(text):
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            port = 0
        named = parts.username is not None or parts.query or parts.fragment
        plain = not named and bool(parts.hostname) and port != 0
        if plain and parts.scheme == "http" and not re.search(r"\s", text):
            return text.rstrip("/")
    elif _DEVICE.fullmatch(text):
        return text
    raise ValueError(f"{_EXPECTED}, was expected, not {text!r}")


Mirror = Annotated[str, AfterValidator(_mirror), Field(json_schema_extra={"expected": _EXPECTED})]


def _is_open(mirror: str) -> bool:
    return "://" in mirror


def open_mirrors(mirrors: Sequence[str]) -> list[str]:
    """Return the addresses of the mirrors that are no hosts of the lab."""
    return [mirror for mirror in mirrors if _is_open(mirror)]


def mirror_problems(mirrors: Sequence[str], devices: Sequence[str], base_station: str) -> Iterator[Problem]:
    """Yield mirrors that are no device of the lab, and those that stand twice.

    Args:
        mirrors: The mirrors.
        devices: The names of the lab's devices.
        base_station: The name of its base station.
    """
    from testbed.config.inventory import no_device

    for number, mirror in enumerate(mirrors):
        place = ("network", "artifact_mirrors", number)
        if mirror in mirrors[:number]:
            yield Problem(place, f"{mirror} stands here twice")
        elif mirror == base_station:
            yield Problem(place, f"{mirror} is the base station, which all devices pull from anyway")
        elif not _is_open(mirror) and mirror not in devices:
            yield Problem(place, no_device(mirror, devices))
