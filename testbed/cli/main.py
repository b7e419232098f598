"""The `testbed` command: the list of verbs and how errors are shown.

The verbs import what they need when they run, so that `testbed --help` is quick.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from testbed import __version__
from testbed.cli import (
    artifacts,
    bundle,
    doctor,
    emulate,
    evaluate,
    inventory,
    lease,
    model,
    place,
    policy,
    probe,
    provision,
    results,
    run_campaign,
    serve,
    services,
    shape,
    simulate,
    simulate_campaign,
    sweep,
    trust,
)
from testbed.cli.common import print_error
from testbed.errors import TestbedError

app = typer.Typer(
    name="testbed",
    help="Reproducible wireless edge AI experiments on a rack of unequal Jetsons, real or emulated.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(inventory.app, name="inventory")
app.add_typer(emulate.app, name="emulate")
app.add_typer(services.app, name="services")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(lease.app, name="lease")
app.add_typer(shape.app, name="shape")
app.add_typer(policy.app, name="policy")
app.command("doctor", short_help="Look at this machine; the fix for what it lacks.")(doctor.doctor)
app.command("trust", short_help="Record the hosts' keys once you have seen them.")(trust.trust)
app.command("probe", short_help="Ask the hosts what they are; problems first.")(probe.probe)
app.command("provision", short_help="Make the hosts ready; right ones are left alone.")(provision.provision)
app.command("bundle", short_help="Gather what a rack without the internet needs.")(bundle.bundle)
app.command("shard", short_help="Split a model: base station's part and experts.")(model.shard)
app.command("place", short_help="Show which device would hold which expert.")(place.place)
app.command("run", short_help="Run a campaign, from its file to its report.")(run_campaign.run)
app.command("serve", short_help="Serve a campaign's model to OpenAI clients.")(serve.serve)
app.command("simulate", short_help="Simulate a campaign: the same tables, no hosts.")(
    simulate_campaign.simulate
)
app.command("evaluate", short_help="Measure the quality of a campaign's policies.")(evaluate.evaluate)
app.command("sweep", short_help="Simulate a campaign at many values.")(sweep.sweep)
app.command("calibrate", short_help="Fit the latency model to a run.")(simulate.calibrate)
app.command("runs")(results.runs)
app.command("report")(results.report)
app.command("export")(results.export)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that stand before the verb."""
    if debug:
        os.environ["TESTBED_DEBUG"] = "1"


def run() -> None:
    """Run the command line: errors go to standard error in a line or two, with the tree's exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except TestbedError as error:
        if os.environ.get("TESTBED_DEBUG"):
            traceback.print_exc()
        print_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except OSError as error:
        # A file or folder of this machine: whatever a host does is a HostError.
        if os.environ.get("TESTBED_DEBUG"):
            traceback.print_exc()
        print_error(*explained(error))
        sys.exit(TestbedError.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # what there is now ends with the process: nobody has to look for garbage in it


def explained(error: OSError) -> tuple[str, str]:
    """Return what a failure of this machine's files means, and what to do about it."""
    if error.filename is None:
        return str(error), "`testbed --debug ...` shows where"
    path = Path(os.fsdecode(error.filename))
    hint = {
        errno.ENOENT: "is the name right?",
        errno.EACCES: f"who owns it? `ls -ld {path.parent} {path}` says so",
        errno.EROFS: "name a folder that can be written",
        errno.ENOSPC: "the disk is full",
        errno.EEXIST: "a folder was expected there: name another place",
        errno.ENOTDIR: "a folder was expected there: name another place",
        errno.EISDIR: "a file was expected there: name another place",
    }.get(error.errno or 0, "`testbed --debug ...` shows where")
    return f"{path}: {error.strerror}", hint


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that both restore what was changed."""
    raise KeyboardInterrupt
