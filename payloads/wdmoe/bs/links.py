"""The base station's hand on the links: it shares the bandwidth among the devices while a trial runs.

The shares go to linkd, which makes rates of them with the channel that it plays, and keeps each change with its
reason in the history of the links. What the shares are to be is the policy's matter
(:mod:`payloads.wdmoe.decision`); nothing of this runs for one that leaves the links alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Type

import numpy as np

from payloads.linkd.client import Client
from payloads.linkd.errors import LinkdError
from payloads.station.link_feed import LinkControlError, LinkFeed
from payloads.station.link_state import LinkState

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payloads.wdmoe.decision import Decider

    Array = NDArray[np.float64]

__all__ = ["LinkControl", "LinkControlError", "ask_links"]

DIRECTIONS = ("downlink", "uplink")


class LinkControl:
    """Gives the devices shares of the band for one trial; a context manager that puts the scenario's back.

    Args:
        path: linkd's socket.
        feed: What linkd says.
        kind: The kind of the allocation, for the summary.
        trial: The trial's name, for the history of the links.
        devices: The devices of the model, in the order of the columns.

    Raises:
        LinkControlError: linkd does not run, or does not shape every link in both directions.
    """

    def __init__(self, path: Path, feed: LinkFeed, kind: str, trial: str, devices: Sequence[str]) -> None:
        self._feed = feed
        self._kind = kind
        self._trial = trial
        self._devices = tuple(devices)
        self._count, self._seconds = 0, 0.0
        try:
            self._client = Client(path)
        except LinkdError as error:
            raise LinkControlError(f"the policy allocates bandwidth, and {error}") from error
        try:
            self._scenario = _shares_in_force(ask_links(self._client), self._devices)
        except LinkControlError:
            self._client.close()
            raise
        self._in_force = self._scenario
        self._unanswered: Optional[str] = None

    def __enter__(self) -> LinkControl:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        failure: Optional[LinkControlError] = None
        try:
            # Also where the last shares were refused, the scenario's have to come back.
            for action in (self.settle, self._put_back):
                try:
                    action()
                except LinkControlError as refused:
                    failure = failure or refused
        finally:
            self._client.close()
        if failure is None:
            return
        if error is None:
            raise failure
        # What ended the trial is the news; a linkd that is gone as well takes its rates with it.
        print(f"base_station: {failure}", file=sys.stderr, flush=True)

    def _put_back(self) -> None:
        if not np.array_equal(self._in_force, self._scenario):
            self.give(self._scenario, f"end of {self._trial}")
            self.settle()

    def begin(self, decider: Decider) -> None:
        """Put the shares in force that a policy begins with.

        Raises:
            LinkControlError: They could not be put in force.
        """
        shares = decider.begin(self.links())
        if shares is not None:
            self.give(shares, f"start of {self._trial}")
            self.settle()

    def links(self) -> LinkState:
        """Return the links as they are: the states that linkd told last, and the shares that it was given last.

        Raises:
            LinkControlError: The links are no longer shaped.
        """
        links = self._feed.links(self._devices)
        if links is None:
            raise LinkControlError("the policy allocates bandwidth, and the links are no longer shaped")
        # Nobody else allocates: an event of a block may still have the shares of before.
        return links.with_shares(self._in_force)

    def give(self, shares: Array, why: str) -> None:
        """Ask for shares; they are in force when :meth:`settle` has returned, and other work can be done before.

        Args:
            shares: (2, D), of the whole band.
            why: A few words for the history of the links.

        Raises:
            LinkControlError: They, or those asked for before, could not be put in force.
        """
        self.settle()
        begun_s = time.monotonic()
        down, up = shares.tolist()
        named = {device: dict(zip(DIRECTIONS, pair)) for device, pair in zip(self._devices, zip(down, up))}
        self._unanswered = why
        try:
            self._client.begin("allocate", shares=named, why=why)
        except LinkdError as error:
            raise _not_allocated(why, error) from error
        self._in_force = shares
        self._count += 1
        self._seconds += time.monotonic() - begun_s

    def settle(self) -> None:
        """Wait until the shares that were asked for last are in force.

        Raises:
            LinkControlError: They could not be put in force.
        """
        why, self._unanswered = self._unanswered, None
        if why is None:
            return
        begun_s = time.monotonic()
        try:
            self._client.answer()
        except LinkdError as error:
            raise _not_allocated(why, error) from error
        self._seconds += time.monotonic() - begun_s

    def summary(self) -> Dict[str, Any]:
        """Return the kind, how often shares were put in force, and how long the base station waited for it in ms."""
        return {
            "kind": self._kind,
            "allocations": self._count,
            "ms": round(1e3 * self._seconds, 3),
        }


def _not_allocated(why: str, error: LinkdError) -> LinkControlError:
    return LinkControlError(f"the bandwidth was not allocated ({why}): {error}")


def ask_links(client: Client) -> List[Mapping[str, Any]]:
    """Return what linkd tells of each link.

    Raises:
        LinkControlError: It does not.
    """
    try:
        links: List[Mapping[str, Any]] = client.show()["links"]
    except (LinkdError, KeyError) as error:
        raise LinkControlError(f"the links' shares are not known: {error}") from error
    return links


def _shares_in_force(links: Sequence[Mapping[str, Any]], devices: Sequence[str]) -> Array:
    """Return the shares (2, D) of both directions.

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
    return np.array([[float(found[device]["shares"][side]) for device in devices] for side in DIRECTIONS])
