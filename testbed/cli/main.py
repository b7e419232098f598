"""The `testbed` command: the list of verbs and how errors are shown.

The verbs import what they need when they run, so that `testbed --help` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer

from testbed import __version__
from testbed.cli import emulate, inventory, model, provision, results, run_campaign, services, trust
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
app.command("trust")(trust.trust)
app.command("provision")(provision.provision)
app.command("shard")(model.shard)
app.command("place")(model.place)
app.command("run")(run_campaign.run)
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
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that both restore what was changed."""
    raise KeyboardInterrupt
