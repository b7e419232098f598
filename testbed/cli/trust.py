"""`testbed trust`: record the keys of a lab's hosts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli.common import (
    DEFAULT_INVENTORY,
    HostProgress,
    InventoryOption,
    JsonOption,
    LimitOption,
    print_error,
    print_failures,
    print_json,
    print_table,
    say,
)
from testbed.errors import HostKeyError, RefusedError

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.hosts.keys import FoundKey

__all__ = ["trust"]


def trust(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Record new keys without asking.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds that each host has.", min=0.1)
    ] = 15.0,
    as_json: JsonOption = False,
) -> None:
    """Fetch the keys of the hosts, show their fingerprints, and record the new ones when you agree.

    Compare each fingerprint with the host's own: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its
    console. A key that differs from the recorded one is never replaced; the exit code is 3.
    """
    from testbed.config.inventory import load_inventory
    from testbed.hosts.endpoint import SshSettings
    from testbed.hosts.fleet import Fleet
    from testbed.hosts.keys import fetch_key, record_keys

    lab = load_inventory(inventory)
    hosts = lab.select(limit)
    settings = SshSettings(lab.known_hosts)
    with Fleet(lab) as fleet, HostProgress("fetching host keys", len(hosts)) as progress:
        outcomes = fleet.each(
            lambda host, _transport: fetch_key(host, settings, timeout_s, fleet.ended),
            hosts,
            on_done=lambda outcome: progress.done(outcome.host.name),
            reach=False,
        )
    found = [outcome.get() for outcome in outcomes if outcome.ok]
    new = [key for key in found if key.state == "new"]
    if as_json:
        failed = [
            {"host": o.host.name, "state": "failed", "error": str(o.error)} for o in outcomes if not o.ok
        ]
        print_json([*(key.as_json() for key in found), *failed])
    elif found:
        rows = [("host", "key", "fingerprint", "state")]
        rows += [(key.host, key.kind, key.fingerprint, key.state) for key in found]
        print_table(rows)
    print_failures(outcomes)
    if new:
        _agree(new, lab.known_hosts, yes=yes)
        record_keys(lab.known_hosts, new)
        say(f"recorded {len(new)} key{'s' * (len(new) != 1)} in {lab.known_hosts}")
    changed = [key for key in found if key.state == "changed"]
    for key in changed:
        error = _changed(key, lab.known_hosts)
        print_error(error.message, error.hint)
    if changed:
        raise typer.Exit(RefusedError.exit_code)
    if len(found) < len(outcomes):
        raise typer.Exit(1)


def _agree(new: list[FoundKey], file: Path, *, yes: bool) -> None:
    """Ask the user, unless told to go on.

    Raises:
        RefusedError: The user did not agree, or nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(
            f"new host keys were not recorded ({len(new)}): nobody is here to be asked",
            hint="compare the fingerprints, then give --yes",
        )
    if not typer.confirm(f"Record {len(new)} new key{'s' * (len(new) != 1)} in {file}?", err=True):
        raise RefusedError("no key was recorded")


def _changed(key: FoundKey, file: Path) -> HostKeyError:
    return HostKeyError(
        key.host,
        f"the host's key has changed: {key.kind} {key.fingerprint} instead of {', '.join(key.recorded)}",
        hint="somebody may be in between. If the host was installed anew, forget its old key by "
        f"`ssh-keygen -f {file} -R '{key.known_name}'` and run this again",
    )
