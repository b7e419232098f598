"""`testbed shape`: a lab's links by hand; what they can do, are to do, and really do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli import shape_look, shape_tables
from testbed.cli.common import DryRunOption, JsonOption, print_json, say
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.campaigns.phases import Phase
    from testbed.campaigns.shape import Deployed, Shape, ShapeRunner
    from testbed.config.inventory import Inventory

__all__ = ["app"]

app = typer.Typer(
    help="The links of a lab: what they can do, what they are to do, and what they really do.",
    no_args_is_help=True,
)
app.command(short_help="What each host can shape links with.")(shape_look.backends)
app.command(short_help="The rates that a campaign's scenarios will give.")(shape_look.preview)

DEFAULT_SIZES = "1024,4096,8192,32768,131072,1048576"
STAY_LOOK_S = 0.5
PROBE_TIMEOUT_S = 8.0

CampaignArgument = Annotated[
    Path | None,
    typer.Argument(help="A campaign file, whose scenarios are taken.", show_default=False, dir_okay=False),
]
LabOption = Annotated[
    Path | None,
    typer.Option(
        "--inventory",
        "-i",
        envvar="TESTBED_INVENTORY",
        help="The inventory file of the lab. Left out: the campaign's own, or inventory/emulated.yaml.",
    ),
]
DevicesOption = Annotated[
    list[str] | None,
    typer.Option("--limit", "-l", metavar="HOST", help="Only this device; may be repeated."),
]
DelayOption = Annotated[
    float, typer.Option("--delay-ms", min=0, max=10_000, help="One-way delay, in both directions.")
]
JitterOption = Annotated[
    float,
    typer.Option(
        "--jitter-ms", min=0, max=2_000, help="How far a packet's delay may be from that, either way."
    ),
]
LossOption = Annotated[
    float,
    typer.Option("--loss-percent", min=0, max=99, help="How many of a hundred packets are lost, at random."),
]
RepeatOption = Annotated[int, typer.Option("--repeat", min=0, help="Whose channel is drawn, from 0.")]


@app.command(short_help="Shape the links until Ctrl-C, then put them back.")
def apply(
    campaign: CampaignArgument = None,
    scenario: Annotated[
        str | None, typer.Option("--scenario", "-s", help="Which of the campaign's scenarios.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="MBIT", help="All links at this rate instead.")
    ] = None,
    uplink_rate: Annotated[
        float | None, typer.Option("--uplink-rate", metavar="MBIT", help="The uplinks at another rate.")
    ] = None,
    delay_ms: DelayOption = 0.0,
    jitter_ms: JitterOption = 0.0,
    loss_percent: LossOption = 0.0,
    repeat: RepeatOption = 0,
    for_s: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", min=0, help="End after so long.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Time a few messages first.")] = True,
    inventory: LabOption = None,
    limit: DevicesOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Shape the links and keep them so, until Ctrl-C or for some seconds; then everything goes back.

    The hosts are held as by a run: whatever becomes of this command, their links go back within seconds. A
    scenario's channel is played. With --json, one line when the links are up and one when they are back.
    """
    from testbed.campaigns.shape import Shape, campaign_and_lab, wanted_of_campaign, wanted_of_rate
    from testbed.config.campaign import Verify

    settings = Verify()
    if campaign is not None:
        _no_rate(rate, uplink_rate, delay_ms, jitter_ms, loss_percent)
        loaded, lab = campaign_and_lab(campaign, inventory, limit or [])
        names = [one.name for one in loaded.scenarios]
        if scenario is None and len(names) > 1:
            raise InputError("name one of the campaign's scenarios", hint=f"--scenario {' | '.join(names)}")
        wanted = wanted_of_campaign(loaded, lab, [scenario or names[0]], repeat)
        settings = loaded.verify
    else:
        if rate is None or scenario is not None:
            raise InputError("name a campaign file, or a rate", hint="testbed shape apply --rate 8")
        lab = _lab(inventory, limit)
        up = rate if uplink_rate is None else uplink_rate
        one = wanted_of_rate(lab, rate, up, delay_ms=delay_ms, jitter_ms=jitter_ms, loss_percent=loss_percent)
        wanted = (one,)
    shape = Shape(lab, wanted, settings if verify else None)
    deployed, phases = _planned(shape, dry_run=dry_run)
    if dry_run:
        _print_plan(shape, deployed, phases, as_json=as_json)
        return
    runner = _stay(shape, phases, for_s, as_json=as_json)
    if runner.stopped or runner.off:
        raise typer.Exit(1)


app.command(short_help="The links as they are now.")(shape_look.show)
app.command(short_help="Follow rates and throughput.")(shape_look.watch)


@app.command(short_help="Time messages against what the rates should give.")
def verify(
    campaign: CampaignArgument = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option("--scenario", "-s", help="Only this of the campaign's scenarios; may be repeated."),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option("--rate", metavar="MBIT", help="All links at this rate instead; may be repeated."),
    ] = None,
    delay_ms: DelayOption = 0.0,
    jitter_ms: JitterOption = 0.0,
    loss_percent: LossOption = 0.0,
    sizes: Annotated[
        str, typer.Option("--sizes", help="The sizes of the messages in bytes, with commas between.")
    ] = DEFAULT_SIZES,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="How many messages of each size.")] = 5,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", help="How far a median may be off, as a share of what is expected."),
    ] = 0.05,
    busy: Annotated[
        bool,
        typer.Option("--busy/--no-busy", help="Also with all other devices at full load in both directions."),
    ] = True,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Also write the rows to this file.", dir_okay=False)
    ] = None,
    inventory: LabOption = None,
    limit: DevicesOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time messages of many sizes over each link, idle and busy, and compare with what the rates should give.

    A scenario with a channel is verified at its mean rates. The exit code is 1 where a link is off.
    """
    from testbed.campaigns.shape import (
        Shape,
        campaign_and_lab,
        verify_settings,
        wanted_of_campaign,
        wanted_of_rate,
    )

    settings = verify_settings(_numbers(sizes), repeats, tolerance)
    if campaign is not None:
        _no_rate(*(rate or []), delay_ms, jitter_ms, loss_percent)
        loaded, lab = campaign_and_lab(campaign, inventory, limit or [])
        wanted = wanted_of_campaign(loaded, lab, scenario or [])
        wanted = tuple(replace(one, channel=None) for one in wanted)  # the mean rates of a channel stay
    else:
        if not rate or scenario:
            raise InputError("name a campaign file, or rates", hint="testbed shape verify --rate 1 --rate 20")
        lab = _lab(inventory, limit)
        wanted = tuple(
            wanted_of_rate(lab, one, one, delay_ms=delay_ms, jitter_ms=jitter_ms, loss_percent=loss_percent)
            for one in dict.fromkeys(rate)
        )
    if busy and len(lab.devices) < 2:
        say("one device: there is no other one to load, so only the idle link is verified")
        busy = False
    shape = Shape(lab, wanted, settings, busy)
    deployed, phases = _planned(shape, dry_run=dry_run)
    if dry_run:
        _print_plan(shape, deployed, phases, as_json=as_json)
        return
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
        csv.touch()  # a place that cannot be written is found now, and not when all is measured
    say(f"{shape.rows} rows of {repeats} messages; this takes about {_duration(shape.seconds)}")
    runner = _carried_out(shape, phases)
    if csv is not None:
        shape_tables.write_csv(csv, runner.rows)
    if as_json:
        print_json({"ok": not runner.off and not runner.stopped, "rows": runner.rows})
    else:
        shape_tables.print_verification(runner.rows)
    if runner.stopped or runner.off:
        raise typer.Exit(1)


app.command(short_help="Put the links of all hosts back.")(shape_look.clear)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--sizes: numbers with commas between were expected, not {text!r}") from None


def _no_rate(*given: float | None) -> None:
    """Refuse rates beside a campaign: its scenarios say what the links are.

    Raises:
        InputError: There is one.
    """
    if any(given):
        raise InputError("a campaign's scenarios say what the links are: leave the campaign or the rates out")


def _lab(inventory: Path | None, limit: list[str] | None) -> Inventory:
    from testbed.cli.common import DEFAULT_INVENTORY
    from testbed.config.inventory import load_inventory

    return load_inventory(inventory or DEFAULT_INVENTORY).limited(limit or [])


def _planned(shape: Shape, *, dry_run: bool) -> tuple[Deployed, list[Phase]]:
    from testbed.campaigns.prepare import refuse_held
    from testbed.campaigns.shape import deployed, open_lab, plan_shape

    with open_lab(shape.inventory, connect_timeout_s=PROBE_TIMEOUT_S)() as fleet:
        found = deployed(fleet, assume=dry_run)
        if not dry_run:
            refuse_held(fleet)
    return found, plan_shape(shape, found.steps)


def _print_plan(shape: Shape, found: Deployed, phases: list[Phase], *, as_json: bool) -> None:
    from testbed.campaigns.phases import phase_lines, phases_json

    if as_json:
        print_json(
            {
                "assumed": found.assumed,
                "phases": phases_json(phases),
                "verify_seconds": round(shape.seconds, 1),
            }
        )
        return
    print("nothing is changed")
    for host, why in found.assumed.items():
        print(f"{host}: assumed to have nothing yet, since {why}")
    if shape.verify:
        print(f"the verification takes about {_duration(shape.seconds)}")
    print("\n".join(phase_lines(phases)))


def _carried_out(shape: Shape, phases: list[Phase]) -> ShapeRunner:
    from testbed.campaigns.progress import PhaseProgress
    from testbed.campaigns.shape import ShapeRunner, open_lab

    with PhaseProgress(shape.rows) as progress:
        runner = ShapeRunner(open_lab(shape.inventory), shape, progress)
        runner.carry_out(phases)
    return runner


def _stay(shape: Shape, phases: list[Phase], for_s: float | None, *, as_json: bool) -> ShapeRunner:
    """Shape the links, stay until the user or the time ends it, and put them back."""
    import json
    import time

    from testbed.campaigns.progress import PhaseProgress
    from testbed.campaigns.shape import ShapeRunner, open_lab

    progress = PhaseProgress(shape.rows)
    up = False

    def stay() -> None:
        nonlocal up
        progress.stop()
        up = True
        if as_json:
            said = {"event": "shaped", "links": runner.links, "verified": runner.rows}
            print(json.dumps(said), flush=True)
        else:
            shape_tables.print_in_force(runner.links, runner.rows)
            until = "until Ctrl-C" if for_s is None else f"for {for_s:g} s"
            if shape.wanted[-1].channel:
                say("these are the mean rates of the scenario's channel, which the links follow from now on")
            say(f"the links are shaped {until}; watch them with: testbed shape watch")
            if shape.inventory.network.shaping == "pacing":
                say("only sockets of testbed keep to these rates (`network.shaping` is pacing)")
        end = None if for_s is None else time.monotonic() + for_s
        while end is None or time.monotonic() < end:
            runner.leases.check()
            left_s = STAY_LOOK_S if end is None else end - time.monotonic()
            time.sleep(max(0.0, min(STAY_LOOK_S, left_s)))

    with progress:
        runner = ShapeRunner(open_lab(shape.inventory), shape, progress)
        try:
            runner.carry_out(phases, stay=stay)
        except KeyboardInterrupt:
            if not up:
                raise
    if as_json:
        print(json.dumps({"event": "restored", "ok": not runner.stopped}), flush=True)
    elif not runner.stopped:
        say("the links are as they were")
    return runner


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(seconds, 1):.0f} s"
