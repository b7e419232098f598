"""The backend without a kernel: it keeps the rates, and those who own sockets pace them (SO_MAX_PACING_RATE).

No root, no queueing discipline and nothing to put back. A watcher learns of each change and sets the rate of its
own sockets, so that each end paces what it sends itself.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

from payloads.linkd.errors import RefusedError
from payloads.linkd.history import Sample
from payloads.linkd.links import Link

__all__ = ["Pacer"]

_BACKEND = "socket-pacing"


class Pacer:
    """Keeps the rates that sockets are paced with."""

    def __init__(self) -> None:
        self._links: Tuple[Link, ...] = ()

    @property
    def links_set(self) -> bool:
        """Whether links are set."""
        return bool(self._links)

    @property
    def line(self) -> Optional[str]:
        """There is no user-space line."""
        return None

    def set(
        self, links: Sequence[Link], highest: Sequence[Link] = (), varies: bool = False
    ) -> Dict[str, Any]:
        """Keep these links' rates and no others.

        Args:
            links: The links.
            highest: Of no matter here: a socket is paced at any rate.
            varies: Likewise.

        Raises:
            RefusedError: A delay, a jitter or a loss is asked for.
        """
        for link in links:
            if link.impaired:
                text = f"{link.device}: delay, jitter and loss cannot be given by pacing sockets"
                raise RefusedError(f"refused: {text}: serve with --backend kernel")
        before = self._links
        self._links = tuple(links)
        changed = sum(2 for link in links if link not in before) + sum(2 for k in before if k not in links)
        return {**self._about(), "changed": changed}

    def rerate(self, links: Sequence[Link]) -> int:
        """Keep other rates of the same links; return how many changed."""
        changed = 0
        for old, new in zip(self._links, links):
            changed += (old.downlink_mbit != new.downlink_mbit) + (old.uplink_mbit != new.uplink_mbit)
        self._links = tuple(links)
        return changed

    def clear(self) -> Dict[str, Any]:
        """Forget the links."""
        self._links = ()
        return {"restored": None}

    def show(self) -> Dict[str, Any]:
        """Return the links; nothing counts what passes."""
        answer = self._about()
        for row in answer["links"]:
            row.update(downlink=None, uplink=None)
        return answer

    def sample(self, unix_s: float) -> Optional[Sample]:
        """Return None: there are no counters."""
        return None

    def check(self, links: Sequence[Link]) -> None:
        """Check that rates to come can be given: any can."""

    def look_after_line(self) -> bool:
        """Return False: there is no line that could have died."""
        return False

    def _about(self) -> Dict[str, Any]:
        return {
            "backend": _BACKEND,
            "interface": None,
            "ifb": None,
            "mtu": None,
            "slack_us": None,
            "links": [{**link.as_json(), "backends": _backends(link)} for link in self._links],
        }


def _backends(link: Link) -> Dict[str, str]:
    return {
        "downlink": "none" if link.downlink_mbit is None else _BACKEND,
        "uplink": "none" if link.uplink_mbit is None else _BACKEND,
    }
