"""A host's clock beside ours, and what keeps it right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.config.inventory import Host
from testbed.hosts.facts import Facts
from testbed.hosts.facts.system import Unit
from testbed.hosts.payload import shell_path
from testbed.hosts.steps import Command, Step
from testbed.provision.aspect import Change, Finding

__all__ = ["Clock"]

CHRONY = frozenset({"chrony", "chronyd"})
SERVICES = ("chrony", "chronyd", "systemd-timesyncd", "ntp", "ntpsec")
"""The time services, the best one first."""
CHRONY_DROP_IN = "/etc/chrony/sources.d/testbed.sources"
TIMESYNCD_DROP_IN = "/etc/systemd/timesyncd.conf.d/testbed.conf"
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Clock:
    """A host's clock beside ours, and the time service that keeps it right where the inventory asks for one."""

    item: str = "clock"

    def changes(self, host: Host, facts: Facts) -> Iterator[Change]:
        """Yield the starting of a time service, with the servers that the inventory names."""
        chosen = _service(facts)
        if not _asked(host) or not facts.systemd or chosen is None:
            return
        unit = facts.system.time.units[chosen]
        path, text = _drop_in(host, facts, chosen)
        there = facts.system.time.drop_ins.get(path) if path else None
        writes = path is not None and (there or "").strip() != text.strip()
        runs = unit.active == "active" and unit.enabled == "enabled"
        if runs and not writes:
            return
        steps: list[Step] = []
        if path is not None and writes:
            put = (
                f"mkdir -p {shell_path(path.rpartition('/')[0])} && cat >{path}.part && chmod 644 {path}.part"
            )
            shell = f"{put} && mv {path}.part {path}"
            steps.append(
                Command(
                    host.name, shell, "name the time servers", TIMEOUT_S, stdin=text.encode(), become=True
                )
            )
        told = f'echo "{chosen} does not stay up: systemctl status {chosen} on the host says why" >&2; exit 1'
        begin = f"systemctl enable {chosen}.service && systemctl restart {chosen}.service"
        shell = f"{begin} && {{ systemctl is-active --quiet {chosen}.service || {{ {told}; }}; }}"
        steps.append(Command(host.name, shell, f"start {chosen}", TIMEOUT_S, become=True))
        after = f"{chosen} runs" + (f" and asks {', '.join(host.clock.servers)}" if path else "")
        yield Change(
            host.name,
            self.item,
            f"keep the clock by {chosen}",
            f"{chosen} {unit.active or 'unknown'}, {unit.enabled or 'unknown'}"
            + (", its own servers" if writes else ""),
            after,
            tuple(steps),
            recorded={
                "unit": chosen,
                "active": unit.active == "active",
                "enabled": unit.enabled == "enabled",
                "path": path if writes else None,
                "text": there,
                "folder": bool(path and path.rpartition("/")[0] in facts.system.time.folders),
            },
        )

    def findings(self, host: Host, facts: Facts, changes: Sequence[Change]) -> Iterator[Finding]:
        """Yield a clock that is off, one that nothing keeps, and servers that cannot be named from here."""
        planned = any(change.item == self.item for change in changes)
        offset, error, limit = facts.clock_offset_s, facts.clock_error_s or 0.0, host.clock.limit_ms / 1000
        off = offset is not None and abs(offset) > limit + error
        if offset is not None and off:
            way = "ahead of" if offset > 0 else "behind"
            known = f"known to {_shown(error)}, at most {limit * 1000:g} ms"
            text = f"its clock is {_shown(abs(offset))} {way} ours ({known})"
            yield Finding(host.name, "failure", self.item, text, _hint(facts))
        if not facts.system.access.groups:
            return  # nobody has looked
        if _asked(host) and (not facts.systemd or _service(facts) is None):
            text = "the inventory asks for a time service, and the host has none that systemd knows"
            yield Finding(
                host.name, "failure", self.item, text, "add `chrony` to its `packages` in the inventory"
            )
            return
        chosen = _service(facts)
        if host.clock.servers and chosen is not None and _drop_in(host, facts, chosen)[0] is None:
            names = " ".join(host.clock.servers)
            text = f"its {chosen} reads no folder of sources, so that its servers cannot be named from here"
            hint = f"on the host: put `server {names} iburst` into {chosen}'s own configuration, or install chrony 4"
            yield Finding(host.name, "warning", self.item, text, hint)
        if facts.systemd and not off and not planned:
            yield from self._unkept(host, facts)

    def undo(self, host: Host, facts: Facts, recorded: Mapping[str, Any]) -> Iterator[Step]:
        """Yield what brings back the servers and the state of the service."""
        unit, path, stdin = f"{recorded['unit']}.service", recorded["path"], b""
        parts = []
        if path is not None and recorded["text"] is not None:
            parts.append(f"cat >{path}.part && chmod 644 {path}.part && mv {path}.part {path}")
            stdin = (recorded["text"].strip() + "\n").encode()
        elif path is not None:
            parts.append(f"rm -f {path} {path}.part")
            if not recorded["folder"]:
                folder = path.rpartition("/")[0]
                parts.append(f"{{ ! test -d {folder} || rmdir --ignore-fail-on-non-empty {folder}; }}")
        state = [] if recorded["enabled"] else [f"systemctl disable {unit}"]
        state.append(f"systemctl {'try-restart' if recorded['active'] else 'stop'} {unit}")
        # An undoing that was cut off may have removed the service's package already.
        parts.append(f"if systemctl cat {unit} >/dev/null 2>&1; then {' && '.join(state)}; fi")
        title = f"give {recorded['unit']} its settings back"
        yield Command(host.name, " && ".join(parts), title, TIMEOUT_S, stdin=stdin, become=True)

    def _unkept(self, host: Host, facts: Facts) -> Iterator[Finding]:
        time = facts.system.time
        active = [name for name, unit in time.units.items() if unit.active == "active"] + list(time.running)
        if not active:
            text = "nothing keeps its clock right"
            hint = "`clock: {ntp: true}` in the inventory, or on the host: sudo timedatectl set-ntp true"
            yield Finding(host.name, "warning", self.item, text, hint)
        elif time.synchronised is False:
            text = f"{active[0]} runs and has not set the clock yet"
            yield Finding(
                host.name,
                "warning",
                self.item,
                text,
                "can the host reach its time servers? " + _look(active[0]),
            )


def _asked(host: Host) -> bool:
    return host.clock.ntp or bool(host.clock.servers)


def _service(facts: Facts) -> str | None:
    """Return the time service to use: one that runs already, else the best one that there is."""
    units = facts.system.time.units
    there = [name for name in SERVICES if units.get(name, Unit()).enabled not in ("", "masked")]
    active = [name for name in there if units[name].active == "active"]
    return next(iter([*active, *there]), None)


def _drop_in(host: Host, facts: Facts, service: str) -> tuple[str | None, str]:
    """Return the file that names the time servers, and its text; no file where none is needed or would be read."""
    servers = host.clock.servers
    if servers and service in CHRONY and facts.system.time.chrony_sources:
        return CHRONY_DROP_IN, "".join(f"server {server} iburst\n" for server in servers)
    if servers and service == "systemd-timesyncd":
        return TIMESYNCD_DROP_IN, f"[Time]\nNTP={' '.join(servers)}\n"
    return None, ""


def _shown(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _look(service: str) -> str:
    return "`chronyc sources`" if service in CHRONY else "`timedatectl timesync-status`"


def _hint(facts: Facts) -> str:
    """Return how a clock that is off is put right."""
    time = facts.system.time
    active = [name for name, unit in time.units.items() if unit.active == "active"] + list(time.running)
    if CHRONY & set(active):
        return "on the host: sudo chronyc makestep, and see `chronyc tracking`"
    if active:
        return f"on the host: sudo systemctl restart {active[0]}, and see `timedatectl`"
    if time.units:
        return "`clock: {ntp: true}` in the inventory, or on the host: sudo timedatectl set-ntp true"
    return "on the host: sudo apt-get install chrony && sudo chronyc makestep (or once: sudo date -s '...')"
