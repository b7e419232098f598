"""Devices that go and come back while a model runs: who is gone, what is done about it, and a record of both."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import AbstractSet, Any, Callable, Iterator, List, NoReturn, Optional, Sequence, Set, Tuple

import numpy as np

from payloads.station.devices import Devices
from payloads.wdmoe.bs.asked import Asked, Pairs
from payloads.wdmoe.bs.loss import LossEvent, LossPolicy
from payloads.wdmoe.bs.reach import CostsNow, Gone, Reach
from payloads.wdmoe.bs.readmit import Returning
from payloads.wire.client import DeviceError, DeviceLateError, DeviceLostError

__all__ = ["Losses", "bearing"]

#: So many events are kept; those that follow are only counted (``heard``). Serving may go on for weeks.
MOST_EVENTS = 50_000

#: Whose pass it is: request and token step, neither where several requests share it.
Whose = Callable[[], Tuple[Optional[str], Optional[int]]]


class Losses:
    """What a dispatcher knows and does about devices that are lost.

    Attributes:
        reach: Who can be asked.
        policy: What is done when a device is lost.
        renormalise: What becomes of the weights of a token that lost an expert, as a selection's setting of that name.
        returning: Connects devices again that are lost; ``None`` where they stay lost.
        events: What happened, and what was done about it; the first :data:`MOST_EVENTS` of it.
        heard: Told of each event: the device and the event's name.

    Args:
        whose: Whose pass it is, for the events.
    """

    def __init__(self, whose: Whose) -> None:
        self.reach = Reach()
        self.policy = LossPolicy()
        self.renormalise: Any = "sum"
        self.returning: Optional[Returning] = None
        self.events: List[LossEvent] = []
        self.heard: Callable[[str, str], None] = lambda _device, _event: None
        self._whose = whose
        self._said: Set[Tuple[int, str]] = set()

    def begin(self, policy: LossPolicy, renormalise: Any, returning: Optional[Returning]) -> None:
        """Begin with a policy and without events."""
        self.policy, self.renormalise, self.returning = policy, renormalise, returning
        self.events = []

    def end(self) -> None:
        """Go back to failing with the first device that is lost."""
        self.policy, self.renormalise, self.returning = LossPolicy(), "sum", None

    def place(self, placement: Sequence[Sequence[Sequence[str]]]) -> None:
        """Take over a placement, with all of its devices connected."""
        self.reach.place(placement)
        self._said.clear()

    def first(self, asked: Asked, pairs: Pairs, costs: CostsNow, deadline_ns: Optional[int] = None) -> Pairs:
        """Return what of a layer's pairs is to be asked where some devices were gone before it.

        Raises:
            DeviceError: It cannot go on without one of them.
        """
        moved_from = self.reach.moved_from(asked.layer, asked.index, asked.device_of, costs)[asked.index]
        if asked.keep is not None:
            moved_from = np.where(asked.keep, moved_from, -1)
        rerouted = moved_from >= 0
        if rerouted.any():
            asked.rerouted = rerouted
            for device in np.unique(moved_from[rerouted]).tolist():
                self._say_once(asked.layer, device, "rerouted", "its experts have other holders")
        return self.settled(asked, pairs, deadline_ns)

    def lose(self, device: int, error: DeviceLostError, layer: Optional[int]) -> None:
        """Take note that a device's connection is gone."""
        if device in self.reach.gone:
            return
        self.reach.gone[device] = Gone(time.monotonic_ns(), error)
        event = "deadline" if isinstance(error, DeviceLateError) else "lost"
        self._say(layer, device, event, error.reason)
        if self.returning is not None:
            self.returning.seek(self.reach.devices[device])

    def missing(self, names: AbstractSet[str]) -> None:
        """Take note of devices that were found lost when all was answered."""
        for name in sorted(names & set(self.reach.devices)):
            device = self.reach.devices.index(name)
            if device not in self.reach.gone:
                error = DeviceLostError(name, "it did not tell its clock after the last answer")
                self.reach.gone[device] = Gone(time.monotonic_ns(), error)
                self._say(None, device, "lost", error.reason)

    def refused(self, asked: Asked, device: int, error: DeviceError) -> None:
        """Take note that a device answered with an error; it is not asked again in this layer."""
        asked.refused[device] = error
        self._say(asked.layer, device, "refused", error.reason)

    def unasked(self, errors: Sequence[DeviceLostError], layer: Optional[int]) -> None:
        """Take note that connections of devices broke of which nothing was asked.

        Args:
            errors: What is wrong with them.
            layer: The layer that is under way; ``None`` between two passes, where nothing can fail.

        Raises:
            DeviceLostError: The policy is to fail.
        """
        mine = [
            (self.reach.devices.index(one.device), one) for one in errors if one.device in self.reach.devices
        ]
        for device, error in mine:
            self.lose(device, error, layer)
        if mine and layer is not None and self.policy.kind == "fail":
            self._fail(*mine[0], layer)

    def settled(self, asked: Asked, pairs: Pairs, deadline_ns: Optional[int] = None) -> Pairs:
        """Return what of some pairs of a layer is to be asked now, and of whom, now that some devices are gone.

        Waits for devices where the policy says so.

        Args:
            asked: The layer.
            pairs: The pairs.
            deadline_ns: When nobody waits for the pass any more, on the monotonic clock; ``None`` for never.

        Raises:
            DeviceError: It cannot go on without one of them, or there is no time left to.
        """
        while True:
            if deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
                for device in asked.device_of[pairs.experts].tolist():
                    if device in self.reach.gone or device in asked.refused:
                        self._out_of_time(asked, device)
            verdict = asked.settle(pairs, self.reach, self.policy, self.renormalise)
            for device, event, detail in verdict.said:
                self._say_once(asked.layer, device, event, detail)
            if verdict.failing is not None:
                device = verdict.failing
                gone = self.reach.gone.get(device)
                self._fail(device, asked.refused[device] if gone is None else gone.error, asked.layer)
            if not verdict.waiting:
                return verdict.pairs
            self._await(asked, verdict.waiting, deadline_ns)

    def take_back(self, layer: Optional[int] = None) -> None:
        """Ask devices again that have come back, been checked and been connected anew."""
        if self.returning is None:
            return
        for name, reason in self.returning.unfit():
            self._say_once(layer, self.reach.devices.index(name), "unfit", reason)
        for name, away_s in self.returning.take():
            device = self.reach.devices.index(name)
            self.reach.gone.pop(device, None)
            self._said -= {one for one in self._said if one[0] == device}
            self._say(layer, device, "readmitted", f"away for {away_s:.3g} s")

    def _out_of_time(self, asked: Asked, device: int) -> NoReturn:
        """Give up a pass that nobody waits for any more and that is not complete without a device.

        Raises:
            DeviceLateError: Always.
        """
        error = DeviceLateError(self.reach.devices[device], "it is gone, and the requests' time is up")
        self._fail(device, error, asked.layer)

    def _await(self, asked: Asked, devices: Tuple[int, ...], deadline_ns: Optional[int]) -> None:
        """Wait until some devices are back.

        Raises:
            DeviceLostError: One did not come back in time.
        """
        begun_s = time.monotonic()
        if asked.wait_until_s is None:
            asked.wait_until_s = begun_s + self.policy.wait_s
        until_s = asked.wait_until_s
        bound_s = until_s if deadline_ns is None else min(until_s, deadline_ns / 1e9)
        # One that comes and goes is not waited for for ever; one that goes before it is taken back is waited for on.
        while self.returning is not None and time.monotonic() < bound_s:
            away = [self.reach.devices[device] for device in devices if device in self.reach.gone]
            if not away:
                break
            self.returning.wait(away, bound_s)
            self.take_back(asked.layer)
        for device in devices:
            gone = self.reach.gone.get(device)
            if gone is not None:
                waited_s = time.monotonic() - until_s + self.policy.wait_s
                if deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
                    self._out_of_time(asked, device)
                reason = f"{gone.error.reason}, and it did not come back within {waited_s:.3g} s"
                self._fail(device, type(gone.error)(self.reach.devices[device], reason), asked.layer)
            self._say(asked.layer, device, "waited", f"{time.monotonic() - begun_s:.3g} s")

    def _fail(self, device: int, error: DeviceError, layer: int) -> NoReturn:
        """Say that it cannot go on without a device.

        Raises:
            DeviceError: Always.
        """
        self._say(layer, device, "failed", error.reason)
        if not isinstance(error, DeviceLostError):
            raise error
        raise type(error)(error.device, f"{error.reason} during layer {layer}") from error

    def _say_once(self, layer: Optional[int], device: int, event: str, detail: str) -> None:
        """Say what is so in every layer until the device is back, once; the tokens' rows count it."""
        if (device, event) not in self._said:
            self._said.add((device, event))
            self._say(layer, device, event, detail)

    def _say(self, layer: Optional[int], device: int, event: str, detail: str) -> None:
        # Between two passes it is nobody's.
        request, step = (None, None) if layer is None else self._whose()
        name = self.reach.devices[device]
        self.heard(name, event)
        if len(self.events) < MOST_EVENTS:
            self.events.append(LossEvent(time.monotonic_ns(), request, step, layer, name, event, detail))


@contextmanager
def bearing(losses: Losses, devices: Devices, policy: LossPolicy, renormalise: Any) -> Iterator[None]:
    """Bear the loss of devices as a policy says, and seek those that are lost, until the end."""
    with Returning(devices.attempt, devices.adopt) as returning:
        losses.begin(policy, renormalise, returning)
        try:
            yield
        finally:
            losses.end()
