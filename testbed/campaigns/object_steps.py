"""How objects come to the devices: who serves them, and from whom each device pulls. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from testbed.campaigns.lab_steps import LabSteps
from testbed.campaigns.phases import Phase
from testbed.config.inventory import Host
from testbed.config.mirror import open_mirrors
from testbed.hosts.steps import Step

__all__ = ["PULL_TIMEOUT_S", "ObjectSteps"]

PULL_TIMEOUT_S = 3600.0


class ObjectSteps:
    """Makes the steps; every method is a function of the inventory and its arguments alone.

    Mirrors that are devices of the lab pull what they want first; then they serve what they hold. One that takes no
    part in a run is none in it.

    Args:
        lab: The lab's steps.
        noun: What is pulled: ``shards`` or ``models``.
        wanted_file: Where a device finds the list of what it is to hold.
    """

    def __init__(self, lab: LabSteps, noun: str, wanted_file: str) -> None:
        self._lab = lab
        self._noun = noun
        self._wanted_file = wanted_file
        network = lab.inventory.network
        self._port = network.artifact_port
        self._client_mbit = network.artifact_mbit
        self._open = open_mirrors(network.artifact_mirrors)
        names = network.artifact_mirrors
        self.mirrors = sorted(
            (device for device in lab.devices if device.name in names),
            key=lambda each: names.index(each.name),
        )

    def phases(self) -> list[Phase]:
        """Return the phases after which every device holds what it wants; some may have no steps."""
        others = [device for device in self._lab.devices if device not in self.mirrors]
        return [
            Phase(f"serve the {self._noun}", (self._serve(self._lab.bs),)),
            Phase(f"pull the {self._noun} to the mirrors", tuple(self._pulls(self.mirrors, ()))),
            Phase(f"serve the {self._noun} at the mirrors", tuple(map(self._serve, self.mirrors))),
            Phase(f"pull the {self._noun}", tuple(self._pulls(others, self.mirrors))),
        ]

    def _serve(self, host: Host) -> Step:
        listen = ["--listen", f"{host.address}:{self._port}"]
        if self._client_mbit is not None:
            listen += ["--client-mbit", f"{self._client_mbit:g}"]
        return self._lab.service(host, "artifacts", "artifacts", "serve", *listen)

    def _pulls(self, devices: Sequence[Host], mirrors: Sequence[Host]) -> Iterator[Step]:
        for number, device in enumerate(devices):
            args = ["pull"]
            for url in self._open:
                args += ["--open", url]
            # Each device begins with another mirror, so that they share the work.
            turn = number % max(1, len(mirrors))
            for host in (*mirrors[turn:], *mirrors[:turn], self._lab.bs):
                args += ["--from", f"http://{host.address}:{self._port}"]
            args += ["--wanted", self._wanted_file]
            title = f"pull {self._noun}"
            yield self._lab.payload(device, "artifacts", *args, title=title, timeout_s=PULL_TIMEOUT_S)
