"""`testbed bundle`: gather what a rack without the internet needs in a folder."""

from __future__ import annotations

from collections.abc import Sequence
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
    print_failures,
    print_json,
    say,
)

if TYPE_CHECKING:
    from testbed.config.inventory import Host
    from testbed.hosts.facts import Facts
    from testbed.provision.bundle import Manifest
    from testbed.provision.bundle_plan import Deb, Download

__all__ = ["bundle"]


def bundle(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="The folder to make.")],
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    jetpack: Annotated[
        str | None,
        typer.Option("--jetpack", metavar="5|6|7", help="The JetPack of devices that cannot be asked."),
    ] = None,
    no_debs: Annotated[bool, typer.Option("--no-debs", help="Gather no Debian packages.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Gather the wheels and Debian packages of a fleet, for `testbed provision --bundle`.

    This machine needs the internet, and the hosts need not. They are asked for their Python and for the packages that
    they lack; nothing is changed there.
    """
    from testbed.config.inventory import load_inventory
    from testbed.errors import ConnectError, TestbedError
    from testbed.hosts.facts import gather_facts
    from testbed.hosts.fleet import Fleet
    from testbed.hosts.transport import Transport
    from testbed.provision.bundle import target_of
    from testbed.provision.bundle_make import BundleMaker, ask_for_debs
    from testbed.provision.bundle_plan import debs_wanted, downloads_for, facts_of_jetpack

    lab = load_inventory(inventory)
    hosts = lab.select(limit)

    def ask(host: Host, transport: Transport) -> tuple[Facts, list[Deb]]:
        try:
            facts = gather_facts(host, transport, trust_memory=True)
        except ConnectError:
            if jetpack is None or not host.is_device:
                raise
            return facts_of_jetpack(host, jetpack), []
        names = () if no_debs else debs_wanted(host, facts)
        return facts, ask_for_debs(host.name, transport, names)

    with Fleet(lab) as fleet, HostProgress("ask", len(hosts)) as progress:
        outcomes = fleet.each(ask, hosts, on_done=lambda outcome: progress.done(outcome.host.name))
    asked = [(outcome.host, *outcome.get()) for outcome in outcomes if outcome.ok]
    downloads = downloads_for((host, facts) for host, facts, _ in asked)
    debs: dict[str, dict[Deb, None]] = {}
    for _, facts, lacking in asked:
        debs.setdefault(target_of(facts) or "", {}).update(dict.fromkeys(lacking))
    if asked and dry_run:
        _print_plan(downloads, debs, as_json=as_json)
    elif asked:
        maker = BundleMaker(folder)
        for download in downloads:
            say(f"{download.target}: {', '.join(download.requirements)}")
            try:
                maker.add_wheels(download)
            except TestbedError as error:
                if download.needed:
                    raise
                say(f"warning: left out: {error}")
                say(
                    "  hint: it is needed only where the host's Python does not see one that is installed there"
                )
        for target, lacking_there in debs.items():
            maker.add_debs(target, lacking_there)
        _print_made(folder, maker.finish(), as_json=as_json)
        if len(asked) < len(hosts):
            say(f"warning: {folder} has nothing for the hosts that could not be asked")
    errors = print_failures(outcomes)
    unreached = (outcome for outcome in outcomes if isinstance(outcome.error, ConnectError))
    if jetpack is None and any(outcome.host.is_device for outcome in unreached):
        say("hint: --jetpack 5, 6 or 7 says what those devices run that cannot be asked yet")
    if errors:
        end_with(errors)


def _print_plan(downloads: Sequence[Download], debs: dict[str, dict[Deb, None]], *, as_json: bool) -> None:
    if as_json:
        wheels = [{"target": each.target, "requirements": each.requirements} for each in downloads]
        plan: dict[str, Any] = {
            "wheels": wheels,
            "debs": {target: [d.name for d in each] for target, each in debs.items()},
        }
        print_json(plan)
        return
    for download in downloads:
        print(f"{download.target}: {', '.join(download.requirements)}")
    for target, each in debs.items():
        for deb in each:
            print(f"{target}: {deb.name}, {deb.bytes} bytes")
    print("dry run: nothing was fetched")


def _print_made(folder: Path, manifest: Manifest, *, as_json: bool) -> None:
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    total = sum(entry.bytes for entry in manifest.files)
    for each in manifest.wheels:
        print(f"{each.target}: {', '.join(each.requirements)}: {len(each.files)} wheels")
    for lacking in manifest.debs:
        print(f"{lacking.target}: {len(lacking.files) - 1} Debian packages")
    print(f"{folder}: {len(manifest.files)} files, {total / 1e6:.1f} MB")
    print(f"on the rack: testbed provision --bundle {folder}")
