"""`testbed probe`: what the hosts of a lab are, and what is wrong with them."""

from __future__ import annotations

from typing import Annotated

import typer

from testbed.cli.common import (
    DEFAULT_INVENTORY,
    HostProgress,
    InventoryOption,
    JsonOption,
    LimitOption,
    end_with,
    print_json,
    print_table,
)
from testbed.cli.provision import AfreshOption, AskOption, asked_password

__all__ = ["probe"]


def probe(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: LimitOption = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds that reaching each host may take.", min=0.1)
    ] = 15.0,
    ask_become_password: AskOption = False,
    afresh: AfreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask the hosts what they are: problems first, equal ones together, then a table of facts. Changes nothing.

    The exit code is 1 where a host could not be asked or cannot be used as it is.
    """
    from testbed.config.inventory import load_inventory
    from testbed.doctor.fleet import fleet_json, fleet_problems, fleet_rows
    from testbed.hosts.fleet import Fleet
    from testbed.provision.aspect import Site
    from testbed.provision.code import load_payload_code
    from testbed.provision.survey import survey_fleet

    lab = load_inventory(inventory)
    hosts = lab.select(limit)
    site = Site(load_payload_code())
    become = asked_password() if ask_become_password else None
    with (
        Fleet(lab, connect_timeout_s=timeout_s, become=become) as fleet,
        HostProgress("asking for facts", len(hosts)) as progress,
    ):
        plans = survey_fleet(fleet, hosts, site, afresh=afresh, progress=progress)
    if as_json:
        print_json(fleet_json(plans))
    else:
        problems = fleet_problems(plans)
        for problem in problems:
            print("\n".join(problem.lines()))
        if problems and any(plan.facts for plan in plans):
            print()
        if any(plan.facts for plan in plans):
            print_table(fleet_rows(plans))
    if not all(plan.ok for plan in plans):
        end_with(plan.error for plan in plans if plan.error is not None)
