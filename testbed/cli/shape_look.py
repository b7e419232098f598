"""`testbed shape`: the verbs that look, the one that clears, and how links are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.cli.common import (
    DEFAULT_INVENTORY,
    DryRunOption,
    HostProgress,
    InventoryOption,
    JsonOption,
    LimitOption,
    end_with,
    print_error,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from testbed.config.inventory import Host, Inventory
    from testbed.hosts.fleet import Outcome
    from testbed.hosts.steps import Command

__all__ = [
    "backends",
    "clear",
    "preview",
    "print_in_force",
    "print_verification",
    "show",
    "watch",
    "write_csv",
]

DIRECTIONS = ("downlink", "uplink")
UNSHAPED = "nothing shapes this lab's links (`network.shaping` is none)"
NOT_RUNNING = "linkd does not run"
RED, PLAIN = "\033[31m", "\033[0m"


def backends(
    inventory: InventoryOption = DEFAULT_INVENTORY, limit: LimitOption = None, as_json: JsonOption = False
) -> None:
    """Show what each host can shape links with, found by trying it where nothing else can notice.

    The exit code is 1 where a host cannot do what the inventory asks of it.
    """
    from testbed.links.backends import BACKENDS, choices, troubles
    from testbed.links.commands import capabilities_command

    lab = _lab(inventory)
    outcomes = _each(lab, lab.select(limit), capabilities_command, "trying what the kernels can do")
    answers = {o.host.name: _object(o.get()) for o in outcomes if o.ok}
    found = [
        trouble
        for name, answer in answers.items()
        for trouble in troubles(lab.host(name), lab.network, answer)
    ]
    for trouble in found:
        print_error(f"{trouble.host}: {trouble.text}", trouble.hint)
    if as_json:
        print_json(
            {
                "shaping": lab.network.shaping,
                "leaf": lab.network.leaf,
                "hosts": answers,
                "problems": [vars(trouble) for trouble in found],
            }
        )
    elif answers:
        rows = [("host", "backend", "works", "why not")]
        for name, answer in answers.items():
            asked = choices(lab.host(name), lab.network)
            side = "device-" if lab.host(name).is_device else "bs-"
            for backend in BACKENDS:
                if backend.startswith((side, "socket-")):
                    why = answer["backends"][backend]
                    mark = f"{backend} *" if backend in asked else backend
                    rows.append((name, mark, "no" if why else "yes", why or ""))
        print_table(rows)
        print(f"* may be used: `network.shaping` is {lab.network.shaping}, `leaf` is {lab.network.leaf}")
    _fail(outcomes)
    if found:
        raise typer.Exit(1)


def preview(
    campaign: Annotated[Path, typer.Argument(help="The campaign file.", dir_okay=False)],
    scenario: Annotated[str | None, typer.Option("--scenario", "-s", help="Only this scenario.")] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=0, help="Whose channel is drawn, from 0.")] = 0,
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory", "-i", envvar="TESTBED_INVENTORY", help="Another lab than the campaign's."
        ),
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what rates a campaign's scenarios give each device, before anything is run. No host is asked."""
    from testbed.campaigns.shape import campaign_and_lab
    from testbed.links.backends import is_shaped
    from testbed.links.channels.preview import preview_rows

    loaded, lab = campaign_and_lab(campaign, inventory, limit or [])
    if not is_shaped(lab):
        print_json([]) if as_json else print(UNSHAPED)
        return
    rows = preview_rows(loaded, lab, scenario=scenario, repeat=repeat)
    if as_json:
        print_json(rows)
        return
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "scenario": ("scenario", str),
        "device": ("device", str),
        "direction": ("direction", str),
        "model": ("model", str),
        "distance_m": ("distance m", _number),
        "path_loss_db": ("path loss dB", _number),
        "snr_db": ("SNR dB", _number),
        "share": ("share", _number),
        "mean_mbit": ("mean Mbit/s", _number),
        "p5_mbit": ("p5", _number),
        "p50_mbit": ("p50", _number),
        "p95_mbit": ("p95", _number),
        "outage": ("outage", lambda value: f"{value:.1%}"),
        "delay_ms": ("delay ms", _number),
        "jitter_ms": ("jitter ms", _number),
        "loss_percent": ("loss %", _number),
    }
    rare = ("distance_m", "path_loss_db", "snr_db", "delay_ms", "jitter_ms", "loss_percent")
    shown = {key: how for key, how in columns.items() if key not in rare or any(row[key] for row in rows)}
    print_table(
        [
            tuple(title for title, _ in shown.values()),
            *(
                tuple("" if row[key] is None else how(row[key]) for key, (_, how) in shown.items())
                for row in rows
            ),
        ]
    )


def show(
    inventory: InventoryOption = DEFAULT_INVENTORY, limit: LimitOption = None, as_json: JsonOption = False
) -> None:
    """Show the links as they are now: rates asked for, what shapes them, counters, and whether a channel plays."""
    from testbed.links.backends import shaping_hosts
    from testbed.links.commands import show_command

    lab = _lab(inventory)
    named = {host.name for host in lab.select(limit)}
    hosts = [host for host in shaping_hosts(lab) if not host.is_device or host.name in named]
    outcomes = _each(lab, hosts, show_command, "asking for the links")
    outcomes = [_or_nothing(outcome) for outcome in outcomes]
    answers = {o.host.name: _object(o.get()) for o in outcomes if o.ok}
    for answer in answers.values():
        answer["links"] = [
            link
            for link in answer.get("links", [])
            if link["device"] in named or not limit or _bs_named(lab, limit)
        ]
    if as_json:
        print_json({"shaping": lab.network.shaping, "hosts": answers})
    elif not hosts:
        print(UNSHAPED)
    else:
        _print_links(answers)
    _fail(outcomes)


def _bs_named(lab: Inventory, limit: Sequence[str]) -> bool:
    """Return whether only the base station was named: then all of its links are meant."""
    return list(limit) == [lab.base_station.name]


def _print_links(answers: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [
        ("device", "direction", "Mbit/s", "delay ms", "share", "by", "bytes", "frames", "drops", "waiting")
    ]
    for answer in answers.values():
        for link in answer["links"]:
            for direction in DIRECTIONS:
                if link[f"{direction}_mbit"] is None:
                    continue
                counts = link.get(direction) or {}
                counted = ("bytes", "packets", "drops", "backlog_bytes")
                rows.append(
                    (
                        link["device"],
                        direction,
                        _number(link[f"{direction}_mbit"]),
                        _impairment(link),
                        _number(link["shares"][direction]),
                        link["backends"][direction],
                        *("-" if counts.get(key) is None else str(counts[key]) for key in counted),
                    )
                )
    if len(rows) == 1:
        print("no links are shaped")
        return
    print_table(rows)
    playing = [name for name, answer in answers.items() if answer.get("playing")]
    if playing:
        print(f"a channel is played (by {', '.join(playing)})")
    for name, answer in answers.items():
        if answer.get("line") == "died":
            say(
                f"warning: {name}: the user-space line has died; the links are not what was asked until they are set"
            )


def clear(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put the links of all hosts back as they were, also where the link daemon is dead.

    A run that is under way loses its links by this.
    """
    from testbed.links.commands import clear_command

    lab = _lab(inventory)
    hosts = lab.select(limit)
    if dry_run:
        lines = [clear_command(host).line() for host in hosts]
        print_json(lines) if as_json else print("\n".join(lines))
        return
    outcomes = _each(lab, hosts, clear_command, "putting the links back")
    restored = {o.host.name: _object(o.get())["restored"] for o in outcomes if o.ok}
    if as_json:
        print_json(restored)
    else:
        for name, interface in restored.items():
            print(f"{name}: {f'{interface} is as it was' if interface else 'nothing was shaped'}")
    _fail(outcomes)


def watch(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    for_s: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", min=0, help="End after so long.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Watch rates and throughput as they change: a table on a terminal, a line of JSON an event elsewhere."""
    from testbed.cli.shape_watch import watch_links
    from testbed.links.backends import shaping_hosts

    lab = _lab(inventory)
    named = {host.name for host in lab.select(limit)} if limit else set()
    devices = {device.name for device in lab.devices}
    wanted = (named & devices) or devices
    hosts = [host for host in shaping_hosts(lab) if not host.is_device or host.name in wanted]
    if not hosts:
        print(UNSHAPED)
        return
    watch_links(lab, hosts, wanted, for_s=for_s, as_table=sys.stdout.isatty() and not as_json)


def print_in_force(links: Sequence[Mapping[str, Any]], verified: Sequence[Mapping[str, Any]]) -> None:
    """Print the rates that are in force, and how they were verified."""
    rows = [("device", "direction", "Mbit/s", "delay ms", "by", "verified")]
    for link in links:
        mine = [row for row in verified if all(row[key] == link[key] for key in ("device", "direction"))]
        state = "no" if not mine else "ok" if all(row["ok"] for row in mine) else "OFF"
        rate, delay = _number(link["asked_mbit"]), _number(link["delay_ms"])
        rows.append((link["device"], link["direction"], rate, delay, link["backend"], state))
    print_table(rows)
    sys.stdout.flush()
    off = [row for row in verified if not row["ok"]]
    if off:
        say(
            f"warning: {len(off)} of {len(verified)} probes are off; `testbed shape verify` shows all of them"
        )


def print_verification(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what was verified, what is off in red on a terminal."""
    head = ("links", "device", "direction", "state", "bytes", "Mbit/s", "expected ms", "median ms", "p95 ms")
    cells = [
        (
            row["scenario"],
            row["device"],
            row["direction"],
            row["state"],
            str(row["message_bytes"]),
            _number(row["asked_mbit"]),
            f"{row['expected_ms']:.2f}",
            f"{row['measured_ms']:.2f}",
            f"{row['p95_ms']:.2f}",
            "-" if row["ratio"] is None else f"{row['ratio']:.3f}",
            "ok" if row["ok"] else "OFF",
        )
        for row in rows
    ]
    table = [(*head, "ratio", ""), *cells]
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    coloured = sys.stdout.isatty()
    for number, line in enumerate(table):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        off = number > 0 and not rows[number - 1]["ok"]
        print(f"{RED}{text}{PLAIN}" if off and coloured else text)
    off_count = sum(not row["ok"] for row in rows)
    print(
        f"{off_count} of {len(rows)} are off" if off_count else f"all {len(rows)} are within their tolerance"
    )


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of a verification to a file."""
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _impairment(link: Mapping[str, Any]) -> str:
    text = _number(link["delay_ms"])
    if link["jitter_ms"]:
        text += f" ± {_number(link['jitter_ms'])}"
    if link["loss_percent"]:
        text += f", {_number(link['loss_percent'])} % lost"
    return text


def _lab(inventory: Path) -> Inventory:
    from testbed.config.inventory import load_inventory

    return load_inventory(inventory)


def _each(
    lab: Inventory, hosts: Sequence[Host], command: Callable[[Host], Command], title: str
) -> list[Outcome[str]]:
    from testbed.hosts.fleet import Fleet

    with Fleet(lab) as fleet, HostProgress(title, len(hosts)) as progress:
        return fleet.each(
            lambda host, transport: transport.run(command(host)).stdout,
            hosts,
            on_done=lambda outcome: progress.done(outcome.host.name),
        )


def _or_nothing(outcome: Outcome[str]) -> Outcome[str]:
    """Return an answer without links where no daemon runs: that is no failure of whoever looks."""
    from testbed.errors import CommandError
    from testbed.hosts.fleet import Outcome

    if isinstance(outcome.error, CommandError) and NOT_RUNNING in outcome.error.stderr:
        return Outcome(outcome.host, value='{"links": []}')
    return outcome


def _object(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value


def _fail(outcomes: Sequence[Outcome[str]]) -> None:
    """Name the hosts that failed and end the command if there are any."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    for error in errors:
        hint = getattr(error, "hint", "")
        if "No module named" in str(error):
            hint = "the host has no payload code yet, or an older one: testbed provision"
        print_error(str(error), hint)
    if errors:
        end_with(errors)
