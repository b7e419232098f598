"""The user-space line in the hands of the shaper: started, changed, looked after and taken away."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence, Tuple

from payloads.linkd.errors import LinkdError
from payloads.linkd.links import Link
from payloads.linkd.plan import Interface

__all__ = ["InPath"]


class InPath:
    """Holds at most one line. Its module is imported only where a line is asked for."""

    def __init__(self) -> None:
        self._line: Any = None
        self._links: Tuple[Link, ...] = ()
        self._told = False

    @property
    def state(self) -> Optional[str]:
        """``alive``, ``died``, or None where there is no line."""
        if self._line is None:
            return None
        return "alive" if self._line.alive() else "died"

    def lacks(self, interface: Interface) -> Optional[str]:
        """Return None where a line can run on an interface, or why not."""
        from payloads.linkd.line import usable

        return usable(interface)

    def prepare(self, interface: Interface, links: Sequence[Link]) -> Mapping[str, Any]:
        """Return what has to be known to take the line away, before it is there.

        Raises:
            RefusedError: The line cannot give what is asked for.
        """
        from payloads.linkd.line import needed

        data: Mapping[str, Any] = needed(interface, links)
        return data

    def lead(
        self, interface: Interface, links: Sequence[Link], minors: Mapping[Tuple[str, str, int, int], int]
    ) -> int:
        """Lead the links' packets through the line and into their classes; return how many links changed."""
        if self._line is not None:
            return self.change(links)
        from payloads.linkd.line import Line

        self._line, self._told = Line(interface, links, minors), False
        self._line.start()
        self._links = tuple(links)
        return 0

    def check(self, links: Sequence[Link]) -> None:
        """Check that the line keeps up with the rates, where there is a line.

        Raises:
            RefusedError: It does not.
        """
        if self._line is not None:
            from payloads.linkd.line import check

            check(links)

    def change(self, links: Sequence[Link]) -> int:
        """Give the line's links other rates or impairments in place; return how many differ.

        Raises:
            RefusedError: The line does not keep up with the rates; nothing has changed.
            LinkdError: The line has died, or does not listen.
        """
        if self.state == "died":
            raise LinkdError("the user-space line has died: set the links again")
        changed = sum(old is not new and old != new for old, new in zip(self._links, links))
        if changed:
            self._line.change(links)
        self._links = tuple(links)
        return changed

    def counters(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what waits in the line and was dropped there, by device and direction; nothing without a line."""
        if self.state != "alive":
            return {}
        try:
            counted: Mapping[str, Mapping[str, Any]] = self._line.counters()
        except LinkdError:
            if self.state == "alive":
                raise
            return {}
        return counted

    def has_died(self) -> bool:
        """Return whether the line has died; True once for each line."""
        if self.state != "died" or self._told:
            return False
        self._told = True
        return True

    def stop(self) -> None:
        """End the line; :meth:`take_away` undoes what is left of it."""
        if self._line is not None:
            line, self._line = self._line, None
            line.stop()

    @staticmethod
    def take_away(data: Mapping[str, Any]) -> None:
        """Undo what a line did to this host, from what :meth:`prepare` gave; harmless where nothing is left."""
        from payloads.linkd.line import take_away

        take_away(data)
