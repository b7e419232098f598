"""The jtop service of a device, and a client of its version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.payload import VENV, shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding
from testbed.provision.aspects.pip import bundled_finding, bundled_steps, pip_install
from testbed.provision.aspects.python import recipe_of
from testbed.provision.bundle import Bundle

__all__ = ["Jtop", "client_requirement"]

RESTART = (
    "systemctl restart jtop.service && "
    # The unit is started at once and the socket comes a little later.
    "{ i=0; while [ ! -S /run/jtop.sock ] && [ $i -lt 50 ]; do sleep 0.2; i=$((i+1)); done; test -S /run/jtop.sock; }"
)


@dataclass(frozen=True)
class Jtop:
    """The jtop service of a device, and a client of its version.

    Client and service must agree in the first two numbers of their versions. The client that the payload code uses is
    made to fit the service, never the other way round: the service is the board's.

    Its record: ``running``, where the service was started; ``client`` and ``own``, where a client was installed: the
    version that the payload code saw before, and whether the environment had that one itself.

    Attributes:
        bundle: Where packages come from instead of an index.
    """

    bundle: Bundle | None = None
    item: str = "jtop"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield what has to change."""
        jtop = facts.jtop
        if not host.is_device or jtop.program is None:
            return
        stale = _stale(facts)
        if (not jtop.socket or stale) and facts.systemd and jtop.unit:
            before = f"version {jtop.running_version} runs" if stale else "not running"
            after = f"version {jtop.service_version} runs" if stale else "running"
            yield Change(
                host.name,
                self.item,
                "start the jtop service",
                before,
                after,
                (Command(host.name, RESTART, "start the jtop service", become=True),),
                recorded={"running": jtop.socket},
            )
        wanted = client_requirement(host, facts)
        if wanted is not None:
            yield Change(
                host.name,
                self.item,
                "install the client of the jtop service",
                f"client {jtop.version or 'none'}, service {jtop.running_version}",
                f"client {jtop.running_version}",
                tuple(self._install(host, facts, wanted)),
                recorded={"client": jtop.version, "own": jtop.own},
            )

    def _install(self, host: Host, facts: Facts, wanted: str) -> Iterator[Step]:
        if self.bundle is not None:
            yield from bundled_steps(host.name, facts, self.bundle, [wanted])
            return
        index = [f"--index-url {shell_path(host.python.index)}"] if host.python.index else []
        # Before version 7 there were no wheels; built in an environment, the sources leave the host's service alone.
        yield pip_install(host.name, [wanted], [*index, "--prefer-binary"], "install the client of jtop")

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield what no change puts right."""
        if not host.is_device:
            return
        jtop = facts.jtop
        ours = [change for change in changes if change.item in {self.item, "access"}]
        wanted = client_requirement(host, facts)
        if wanted is not None and any(change.item == self.item for change in changes):
            yield from bundled_finding(host.name, self.item, facts, self.bundle, [wanted])
        if jtop.program is None:
            hint = "on the host: sudo pip3 install -U jetson-stats && sudo systemctl restart jtop.service"
            yield self._failure(host, "jtop (jetson-stats) is not installed", hint)
        elif not jtop.socket and not ours:
            hint = "on the host, as root: JTOP_SERVICE=True jtop --force"
            yield self._failure(host, "the jtop service does not run (there is no /run/jtop.sock)", hint)
        elif jtop.socket and not jtop.group and not jtop.member:
            yield self._failure(host, "there is no group jtop", "install jetson-stats as root on the host")
        if jtop.program is not None and not any(change.item == "python" for change in changes) and not ours:
            yield from self._client(host, facts)

    def _client(self, host: Host, facts: Facts) -> Iterator[Finding]:
        jtop = facts.jtop
        if jtop.version is None:
            if facts.environment.error is None:
                text = "the Python of the payload code does not see jetson-stats"
                hint = "set `python.system_packages: true`, or add jetson-stats to the packages or the interpreter"
                yield self._failure(host, text, hint)
        elif jtop.mismatch:
            text = (
                f"the jtop service is of version {jtop.running_version} and the payload code's client of "
                f"{jtop.version}: they do not speak with each other"
            )
            fit = f"pip install jetson-stats=={jtop.running_version}"
            hint = f"for the Python of the host's `python.interpreter`: {fit}"
            if _stale(facts):
                hint = "on the host: sudo systemctl restart jtop.service"
            yield self._failure(host, text, hint)
        elif jtop.error is not None and jtop.socket:
            hint = "on the host: sudo systemctl restart jtop.service, then `jtop` shows whether it answers"
            yield self._failure(host, f"the jtop service does not answer: {jtop.error}", hint)

    def _failure(self, host: Host, text: str, hint: str) -> Finding:
        return Finding(host.name, "failure", self.item, text, hint)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield what brings back the client of before, and stops a service that was started."""
        made = any(entry.item == "python" and not entry.recorded.get("there") for entry in facts.record)
        if "client" in recorded and not made:  # an environment that was made goes as a whole
            python = shell_path(f"{VENV}/bin/python")
            shell = f"{python} -m pip uninstall --yes --quiet --disable-pip-version-check jetson-stats"
            if recorded.get("own"):
                index = [f"--index-url {shell_path(host.python.index)}"] if host.python.index else []
                shell = pip_install(host.name, [f"jetson-stats=={recorded['client']}"], index).shell
            # The environment may be gone, and the client with it.
            guarded = f"if [ -x {python} ] && {python} -m pip --version >/dev/null 2>&1; then {shell}; fi"
            yield Command(host.name, guarded, "go back to the client of jtop of before", 600.0)
        if recorded.get("running") is False and facts.systemd:
            shell = "if systemctl is-active --quiet jtop.service; then systemctl stop jtop.service; fi"
            yield Command(host.name, shell, "stop the jtop service", become=True)


def client_requirement(host: Host, facts: Facts) -> str | None:
    """Return the client that has to be installed for the payload code, as pip takes it; None where it fits."""
    jtop = facts.jtop
    if not (host.is_device and host.python.manage) or jtop.program is None or jtop.running_version is None:
        return None
    if _stale(facts) and facts.systemd and jtop.unit:
        return None  # the service is started anew, in the client's version
    made_anew = facts.environment.recipe != recipe_of(host)
    named = any(package.startswith("jetson-stats") for package in host.python.packages)
    if made_anew and (host.python.system_packages or named):
        return None  # what the new environment sees is known when it is there
    if jtop.mismatch or jtop.version is None or made_anew:
        return f"jetson-stats=={jtop.running_version}"
    return None


def _stale(facts: Facts) -> bool:
    """Return whether the service that runs is older than the one that is installed."""
    jtop = facts.jtop
    return jtop.service_version is not None and jtop.running_version != jtop.service_version
