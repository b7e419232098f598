"""Devices that come back: connected and checked again in the background, taken back when it suits the model.

For every device that is sought one thread tries again and again, with longer and longer pauses. What it makes is a
connection of its own; only whoever drives the model puts it in the place of the lost one, between two passes.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple, Type

from payloads.station.devices import Returned
from payloads.wire.channel import DeviceError, DeviceLostError
from payloads.wire.frames import FrameError

__all__ = ["FIRST_PAUSE_S", "LAST_PAUSE_S", "Returning"]

FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0
#: A device that is lost again sooner than this after its return is sought less eagerly each time.
STEADY_S = 30.0


class Returning:
    """Seeks devices that are lost; a context manager that ends all seeking.

    Args:
        attempt: Connects a device and checks it, in a thread of its own; raises :class:`DeviceError` where it is
            not there or not as it was. It must not take long.
        adopt: Puts a connection in the place of the lost one; called by :meth:`take`.
    """

    def __init__(self, attempt: Callable[[str], Returned], adopt: Callable[[str, Returned], None]) -> None:
        self._attempt = attempt
        self._adopt = adopt
        self._changed = threading.Condition()
        self._found: Dict[str, Returned] = {}
        self._unfit: Dict[str, str] = {}
        self._since_s: Dict[str, float] = {}
        self._back_s: Dict[str, float] = {}
        self._pause_s: Dict[str, float] = {}
        self._threads: List[threading.Thread] = []
        self._closed = False

    def __enter__(self) -> Returning:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def seek(self, name: str) -> None:
        """Begin to seek a device, unless it is sought already."""
        with self._changed:
            if self._closed or name in self._since_s:
                return
            now_s = time.monotonic()
            self._since_s[name] = now_s
            first_s = 0.0
            if name in self._back_s and now_s - self._back_s[name] < STEADY_S:
                first_s = min(LAST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s[name]))
            self._pause_s[name] = first_s
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(
                target=self._seek, args=(name, first_s), name=f"seek {name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def wait(self, names: Sequence[str], until_s: float) -> bool:
        """Wait until some devices are there again, or until a time of the monotonic clock; return whether they are."""
        wanted: Set[str] = set(names)
        with self._changed:
            while not wanted <= set(self._found):
                left_s = until_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return wanted <= set(self._found)
            return True

    def take(self) -> List[Tuple[str, float]]:
        """Take over the connections that were made; return whose, and how long each was away in seconds."""
        if not self._found:  # read without the lock: this is asked before every token
            return []
        with self._changed:
            found, self._found = self._found, {}
            since_s = {name: self._since_s.pop(name) for name in found}
        taken = []
        for name, returned in found.items():
            try:
                self._adopt(name, returned)
            except DeviceLostError:
                self.seek(name)  # it went away again
            else:
                self._back_s[name] = time.monotonic()
                taken.append((name, self._back_s[name] - since_s[name]))
            finally:
                returned.exchange.close()
        return taken

    def unfit(self) -> List[Tuple[str, str]]:
        """Return the devices that were there again and not as they were, each with the reason, since the last call."""
        if not self._unfit:  # as above
            return []
        with self._changed:
            unfit, self._unfit = self._unfit, {}
        return list(unfit.items())

    def close(self) -> None:
        """End all seeking, and close what was found and not taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for returned in self._found.values():
            returned.exchange.close()
        self._found = {}

    def _seek(self, name: str, wait_s: float) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, wait_s):
                    return
            try:
                returned = self._attempt(name)
            except (DeviceError, FrameError, OSError) as error:
                if isinstance(error, DeviceError) and not isinstance(error, DeviceLostError):
                    with self._changed:
                        self._unfit[name] = error.reason
                wait_s, pause_s = pause_s, min(LAST_PAUSE_S, 1.5 * pause_s)
                continue
            with self._changed:
                if self._closed:
                    returned.exchange.close()
                    return
                self._found[name] = returned
                self._changed.notify_all()
            return
