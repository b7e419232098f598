"""The `testbed` command: the list of verbs and how errors are shown.

The verbs import what they need when they run, so that `testbed --help` is quick.
"""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

try:
    import contextlib
    import errno
    import gc
    import importlib
    import os
    import signal
    import traceback
    from pathlib import Path
    from types import FrameType
    from typing import Annotated, NoReturn

    import typer

    from testbed import __version__
    from testbed.cli.common import print_error
    from testbed.errors import TestbedError
except KeyboardInterrupt:  # this takes a while, and nothing has begun yet
    print("interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)

app: typer.Typer
"""All verbs, made when it is first asked for."""

#: Verbs that have verbs of their own, by the module that has them as ``app``.
GROUPS = ("inventory", "emulate", "services", "artifacts", "lease", "shape", "policy")
#: The others: each one's module, its function there, and what the list of verbs says of it.
VERBS = {
    "doctor": ("doctor", "doctor", "Look at this machine; the fix for what it lacks."),
    "trust": ("trust", "trust", "Record the hosts' keys once you have seen them."),
    "probe": ("probe", "probe", "Ask the hosts what they are; problems first."),
    "provision": ("provision", "provision", "Make the hosts ready; right ones are left alone."),
    "bundle": ("bundle", "bundle", "Gather what a rack without the internet needs."),
    "shard": ("model", "shard", "Split a model: base station's part and experts."),
    "place": ("place", "place", "Show which device would hold which expert."),
    "run": ("run_campaign", "run", "Run a campaign, from its file to its report."),
    "serve": ("serve", "serve", "Serve a campaign's model to OpenAI clients."),
    "simulate": ("simulate_campaign", "simulate", "Simulate a campaign: the same tables, no hosts."),
    "evaluate": ("evaluate", "evaluate", "Measure the quality of a campaign's policies."),
    "sweep": ("sweep", "sweep", "Simulate a campaign at many values."),
    "calibrate": ("simulate", "calibrate", "Fit the latency model to a run."),
    "runs": ("results", "runs", None),
    "report": ("results", "report", None),
    "export": ("results", "export", None),
}


def app_with(verb: str | None = None) -> typer.Typer:
    """Return the command line with one verb, which is the quickest to make, or with all of them."""
    made = typer.Typer(
        name="testbed",
        help="Reproducible wireless edge AI experiments on a rack of unequal Jetsons, real or emulated.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback()(options)
    known = verb in VERBS or verb in GROUPS
    for name in GROUPS:
        if name == verb or not known:
            made.add_typer(importlib.import_module(f"testbed.cli.{name}").app, name=name)
    for name, (module, function, about) in VERBS.items():
        if name == verb or not known:
            does = getattr(importlib.import_module(f"testbed.cli.{module}"), function)
            made.command(name, short_help=about)(does)
    return made


def __getattr__(name: str) -> typer.Typer:
    if name != "app":
        raise AttributeError(name)
    whole = app_with()
    globals()[name] = whole
    return whole


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


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
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        # Options that stand before the verb take no word after them. A shell that completes a line asks for all verbs.
        verb = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
        app_with(None if "_TESTBED_COMPLETE" in os.environ else verb)()
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
    except SystemExit as end:
        if _after_ctrl_c(end):
            _end_interrupted()
        raise
    except KeyboardInterrupt:
        _end_interrupted()
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


def _after_ctrl_c(end: BaseException) -> bool:
    """Return whether Typer ends since it has caught a KeyboardInterrupt: of that it says nothing."""
    before: BaseException | None = end
    while before is not None and not isinstance(before, KeyboardInterrupt):
        before = before.__context__
    return before is not None


def _end_interrupted() -> NoReturn:
    """End after Ctrl-C or SIGTERM. Whoever asks once more does not wait for the end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # nobody reads: what did was ended too
        print("interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that both restore what was changed."""
    raise KeyboardInterrupt
