"""The base station's hand on the links: it shares the bandwidth among the devices while a trial runs.

The shares go to linkd, which makes rates of them with the channel that it plays, and keeps each change with its
reason in the history of the links. Nothing of this runs for a policy that leaves the links alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type

import numpy as np

from payloads.linkd.client import Client
from payloads.linkd.errors import LinkdError
from payloads.wdmoe.bandwidth import allocate, changed, period_of

__all__ = ["LinkControl", "LinkControlError"]

DIRECTIONS = ("downlink", "uplink")


class LinkControlError(Exception):
    """The links do not do what the trial's policy asks for."""


class LinkControl:
    """Allocates the bandwidth for one trial; a context manager that puts the scenario's shares back.

    Args:
        path: linkd's socket.
        settings: The allocation, as :func:`payloads.wdmoe.bandwidth.check_bandwidth` accepts it; not ``scenario``.
        trial: The trial's name, for the history of the links.
        devices: The devices of the model.

    Raises:
        LinkControlError: linkd does not run, or does not shape every link in both directions.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], trial: str, devices: Sequence[str]) -> None:
        self._settings = settings
        self._trial = trial
        self._period = period_of(settings)
        self._request: Optional[str] = None
        self._count, self._seconds = 0, 0.0
        try:
            self._client = Client(path)
        except LinkdError as error:
            raise LinkControlError(f"the policy allocates bandwidth, and {error}") from error
        try:
            self._devices, self._scenario = _shares_in_force(self._ask_show(), devices)
        except LinkControlError:
            self._client.close()
            raise
        self._in_force = self._scenario
        self._loads = np.zeros_like(self._scenario)

    def __enter__(self) -> LinkControl:
        self.begin()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            if not np.array_equal(self._in_force, self._scenario):
                self._give(self._scenario, f"end of {self._trial}")
        except LinkControlError as failure:
            if error is None:
                raise
            # What ended the trial is the news; a linkd that is gone as well takes its rates with it.
            print(f"base_station: {failure}", file=sys.stderr, flush=True)
        finally:
            self._client.close()

    def begin(self) -> None:
        """Make an allocation that depends on nothing that the trial brings.

        Raises:
            LinkControlError: It could not be made.
        """
        if self._period is None:
            self._allocate(f"start of {self._trial}")

    def before_token(self, request: str, step: int) -> None:
        """Share by what the token step before this one sent, or once by what the first request sent.

        Args:
            request: The request.
            step: Its token step, 0 for the prompt.

        Raises:
            LinkControlError: The shares could not be put in force.
        """
        another = self._request is not None and request != self._request
        self._request = request
        if not self._loads.any():
            return
        if self._period == "token":
            self._allocate(f"step {step} of {request}")
        elif self._period == "trial" and another:
            self._allocate(f"before {request}")
            self._period = None  # once is enough

    def before_layer(self, layer: int, step: int, loads: Mapping[str, Tuple[int, int]]) -> None:
        """Share by what this layer is about to send.

        Args:
            layer: The layer.
            step: The token step, 0 for the prompt.
            loads: Bytes to and from each device that takes part.

        Raises:
            LinkControlError: The shares could not be put in force.
        """
        if self._period is None:
            return
        for device, load in loads.items():
            self._loads[:, self._devices[device]] += load
        if self._period == "layer":
            self._allocate(f"layer {layer} step {step}")

    def summary(self) -> Dict[str, Any]:
        """Return the kind, how many times shares were put in force, and the time that took in ms."""
        return {
            "kind": self._settings["kind"],
            "allocations": self._count,
            "ms": round(1e3 * self._seconds, 3),
        }

    def _allocate(self, why: str) -> None:
        """Share by the loads so far, and forget them."""
        # A scenario may keep a part of the band to itself: what it gave to all of them is shared anew.
        bands = self._scenario.sum(axis=1)
        shares = np.stack([band * allocate(self._settings, loads) for band, loads in zip(bands, self._loads)])
        self._loads[:] = 0
        if changed(self._in_force, shares):
            self._give(shares, why)

    def _give(self, shares: np.ndarray[Any, np.dtype[np.float64]], why: str) -> None:
        begun_s = time.monotonic()
        named = {
            device: {direction: float(shares[row, column]) for row, direction in enumerate(DIRECTIONS)}
            for device, column in self._devices.items()
        }
        try:
            self._client.allocate(named, why)
        except LinkdError as error:
            raise LinkControlError(f"the bandwidth was not allocated ({why}): {error}") from error
        self._in_force = shares
        self._count += 1
        self._seconds += time.monotonic() - begun_s

    def _ask_show(self) -> List[Mapping[str, Any]]:
        try:
            links: List[Mapping[str, Any]] = self._client.show()["links"]
        except (LinkdError, KeyError) as error:
            raise LinkControlError(f"the links' shares are not known: {error}") from error
        return links


def _shares_in_force(
    links: Sequence[Mapping[str, Any]], devices: Sequence[str]
) -> Tuple[Dict[str, int], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return each device's column, and the shares (2, D) of both directions.

    Raises:
        LinkControlError: A device has no link, or a direction of it is not shaped here.
    """
    found = {link["device"]: link for link in links}
    for device in devices:
        if device not in found:
            raise LinkControlError(f"the policy allocates bandwidth, and linkd shapes no link to {device}")
        for direction in DIRECTIONS:
            if found[device].get(f"{direction}_mbit") is None:
                text = f"the policy allocates bandwidth, and linkd here does not shape the {direction} of {device}"
                raise LinkControlError(f"{text}; shape both directions at the base station")
    columns = {device: number for number, device in enumerate(devices)}
    shares = [[float(found[device]["shares"][direction]) for device in devices] for direction in DIRECTIONS]
    return columns, np.array(shares)
