"""`testbed lease`: who has the hosts of a rack; reserve them, and give them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.cli.common import (
    DEFAULT_INVENTORY,
    DryRunOption,
    InventoryOption,
    JsonOption,
    LimitOption,
    end_if_failed,
    print_error,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from testbed.config.inventory import Host, Inventory
    from testbed.hosts.fleet import Fleet, Outcome
    from testbed.hosts.steps import Command
    from testbed.hosts.transport import Transport

__all__ = ["app"]

app = typer.Typer(
    help="Who has the hosts of a rack; reserve them for a time, and give them back.", no_args_is_help=True
)


@app.command("list", short_help="Who has each host, for what, and until when.")
def list_leases(
    inventory: InventoryOption = DEFAULT_INVENTORY, limit: LimitOption = None, as_json: JsonOption = False
) -> None:
    """Show who has each host, for what, since when and until when. Changes nothing."""
    from testbed.hosts.lease_words import lease_row

    lab = _lab(inventory)
    outcomes = _each(lab, lab.select(limit), lambda host: _command(host, "show"))
    answers = {outcome.host.name: outcome.get() for outcome in outcomes if outcome.ok}
    if as_json:
        print_json(answers)
    elif answers:
        print_table(
            [
                ("host", "held by", "for", "since", "until"),
                *(lease_row(name, said) for name, said in answers.items()),
            ]
        )
        for name, said in answers.items():
            for note in said.get("left", []):
                say(f"warning: {name}: a {note} has set its power, and it could not be put back")
                say(f"  hint: testbed lease release --limit {name}, which tries again")
    end_if_failed(outcomes)


@app.command(short_help="Reserve hosts for a time.")
def take(
    for_time: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long: 30m, 2h, 1h30m, at most 7d.")
    ] = "1h",
    purpose: Annotated[str, typer.Option("--purpose", help="What for; others are told.")] = "",
    take_over_from: Annotated[
        str | None,
        typer.Option(
            "--take-over-from", metavar="OWNER", help="End the lease, and the run, of this owner for it."
        ),
    ] = None,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Reserve the hosts, all or none. Taken again by the same owner, a lease ends at the new time.

    Runs of others are refused until its end. At its end, the hosts put back by themselves what was changed: services
    end, and with them the shaping of links, and boards get the power mode and clocks that they had when taken.
    """
    from testbed.hosts.lease_words import reserved_words, seconds_of
    from testbed.hosts.owner import check_owner, check_purpose, this_owner

    owner, for_s = this_owner(), seconds_of(for_time, "--for")
    check_purpose(purpose, "--purpose")
    lab = _lab(inventory)
    hosts = lab.select(limit)
    words = ["--owner", owner, "--purpose", purpose, "--for", f"{for_s:g}"]
    if take_over_from is not None:
        words += ["--take-over-from", check_owner(take_over_from, "--take-over-from")]
    if dry_run:
        _print_plan([_command(host, "take", *words) for host in hosts], as_json=as_json)
        return
    maybe: set[str] = set()
    try:
        with _fleet(lab) as fleet:
            outcomes = _taken(fleet, hosts, lambda host: _command(host, "take", *words), maybe)
            if not all(outcome.ok for outcome in outcomes):
                # All or none: what was free until now is free again.
                taken = [o.host for o in outcomes if o.ok and not o.get()["extended"]]
                given_back = _asked(fleet, taken, lambda host: _command(host, "release", "--owner", owner))
                for outcome in given_back:
                    why = f"could not be given back: {outcome.error}" if outcome.error else "was given back"
                    say(f"{outcome.host.name} {why}")
                _say_in_doubt(o.host.name for o in outcomes if not o.ok and o.host.name in maybe)
                end_if_failed(outcomes)
    except KeyboardInterrupt:
        _say_in_doubt(host.name for host in hosts if host.name in maybe)
        raise
    answers = {outcome.host.name: outcome.get() for outcome in outcomes}
    print_json(answers) if as_json else typer.echo("\n".join(reserved_words(answers, owner)))
    for name, said in answers.items():
        for problem in said.get("left", []):
            say(f"warning: {name}: an earlier lease could not be put back: {problem}")


@app.command(short_help="Give hosts back before their time.")
def release(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give your hosts back: each is put as it was when it was taken. Hosts of others are left alone and named."""
    from testbed.hosts.lease_words import released_words
    from testbed.hosts.owner import this_owner

    owner = this_owner()
    lab = _lab(inventory)
    hosts = lab.select(limit)

    def command(host: Host) -> Command:
        return _command(host, "release", "--owner", owner)

    if dry_run:
        _print_plan([command(host) for host in hosts], as_json=as_json)
        return
    outcomes = _each(lab, hosts, command)
    answers = {outcome.host.name: outcome.get() for outcome in outcomes if outcome.ok}
    if as_json:
        print_json(answers)
    elif answers:
        typer.echo("\n".join(released_words(answers)))
    wrong = {name: said["problems"] for name, said in answers.items() if said["problems"]}
    for name, problems in wrong.items():
        print_error(f"{name}: not as it was: {'; '.join(problems)}")
    end_if_failed(outcomes)
    if wrong:
        raise typer.Exit(1)


def _lab(inventory: Path) -> Inventory:
    from testbed.config.inventory import load_inventory

    return load_inventory(inventory)


def _command(host: Host, action: str, *args: str) -> Command:
    from testbed.hosts.leases import lease_command

    # A host may have to wait for a holder to let go, and for a board's clocks to be put back.
    return lease_command(host, action, *args, timeout_s=180.0 if action != "show" else 30.0)


def _fleet(lab: Inventory) -> Fleet:
    from testbed.hosts.fleet import Fleet

    return Fleet(lab)


def _each(
    lab: Inventory, hosts: Sequence[Host], command: Callable[[Host], Command]
) -> list[Outcome[dict[str, Any]]]:
    with _fleet(lab) as fleet:
        return _asked(fleet, hosts, command)


def _asked(
    fleet: Fleet, hosts: Sequence[Host], command: Callable[[Host], Command]
) -> list[Outcome[dict[str, Any]]]:
    from testbed.hosts.leases import ask_lease

    return fleet.each(lambda host, transport: ask_lease(host, transport, command(host)), hosts)


def _taken(
    fleet: Fleet, hosts: Sequence[Host], command: Callable[[Host], Command], maybe: set[str]
) -> list[Outcome[dict[str, Any]]]:
    """Ask each host to be reserved; ``maybe`` has those that are, and those of which nobody knows."""
    from testbed.errors import CommandError, HeldError
    from testbed.hosts.leases import ask_lease

    def ask(host: Host, transport: Transport) -> dict[str, Any]:
        maybe.add(host.name)
        try:
            return ask_lease(host, transport, command(host))
        except (HeldError, CommandError) as error:
            # Who says no has reserved nothing; what a signal ended has said neither.
            if not (isinstance(error, CommandError) and error.exit_status < 0):
                maybe.remove(host.name)
            raise

    return fleet.each(ask, hosts)


def _say_in_doubt(names: Iterable[str]) -> None:
    if found := list(names):
        limits = " ".join(f"--limit {name}" for name in found)
        say(f"warning: {', '.join(found)}: may be reserved for you: no answer was waited for, or none came")
        say(f"  hint: `testbed lease list` says who has them, `testbed lease release {limits}` frees them")


def _print_plan(steps: Sequence[Command], *, as_json: bool) -> None:
    lines = [step.line() for step in steps]
    print_json(lines) if as_json else typer.echo("\n".join(lines))
