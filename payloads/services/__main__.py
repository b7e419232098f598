"""``python -m payloads.services``: start, stop, restart, status, logs, hold, lease, power and keep."""

from __future__ import annotations

import argparse
import json
import os
import platform
import pwd
import sys
import time
from typing import Any, Sequence

from payloads.services.layout import ServiceError, check_name, service_folder, service_names
from payloads.services.lease import INITIAL_S, read_lease
from payloads.services.spec import Spec, read_spec
from payloads.services.systemd import guard, services_here


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    # What follows the first -- is the service's own command line, whatever it looks like.
    cut = list(arguments).index("--") if "--" in arguments else len(arguments)
    options, argv = _parser().parse_args(arguments[:cut]), tuple(arguments[cut + 1 :])
    try:
        return int(options.run(options, argv))
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m payloads.services", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, words: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words, description=words)
        added.set_defaults(run=run)
        return added

    start = command("start", _start, "start a service: start NAME [options] -- PROGRAM ARGUMENT...")
    start.add_argument("name")
    start.add_argument("--restart", action="store_true", help="start it again when it fails")
    restart = command("restart", _restart, "stop a service and start it again as it was")
    restart.add_argument("name")
    for one in (start, restart):
        one.add_argument("--ready-timeout", type=float, default=30.0, metavar="S", help="0: do not wait")
        one.add_argument("--initial-lease", type=float, default=INITIAL_S, metavar="S")
    stop = command("stop", _stop, "stop services")
    stop.add_argument("names", nargs="*", metavar="NAME")
    stop.add_argument("--all", action="store_true")
    status = command("status", _status, "describe the services of this host")
    status.add_argument("--json", action="store_true")
    log = command("logs", _logs, "print the end of a service's log")
    log.add_argument("name")
    log.add_argument("--lines", type=int, default=50, metavar="N", help="0: all that is kept")
    hold = command("hold", _hold, "have this host for as long as bytes come on standard input")
    hold.add_argument("--ttl", type=float, default=8.0, metavar="S")
    hold.add_argument("--wait", type=float, default=20.0, metavar="S", help="for a holder that may be gone")
    lease = command("lease", _lease, "reserve this host, give it back, or say who has it")
    lease.add_argument("action", choices=("show", "take", "release"))
    lease.add_argument("--for", dest="for_s", type=float, default=3600.0, metavar="S")
    lease.add_argument("--take-over-from", default="", metavar="OWNER")
    for one in (hold, lease):
        one.add_argument("--owner", default="", help="left out: this user on this host")
        one.add_argument("--purpose", default="")
    power = command("power", _power, "how this board is set; set it for a run; put it back")
    power.add_argument("action", choices=("show", "set", "restore"))
    power.add_argument("--mode", default=None, metavar="NAME", help="the power mode, by its name")
    power.add_argument("--jetson-clocks", action="store_true", help="all clocks at their greatest")
    power.add_argument("--settle", type=float, default=0.0, metavar="S", help="wait so long once it is set")
    command("keep", _keep, "put back what leases from before a boot have left (a systemd unit of its own)")
    supervise = command("supervise", _supervise, "be the supervisor (started by the others)")
    supervise.add_argument("--ready-fd", type=int, required=True)
    command("guard", _guard, "wait until the lease ends (a systemd unit of its own)").add_argument(
        "--initial-lease", type=float, default=INITIAL_S, metavar="S"
    )
    return parser


def _start(options: argparse.Namespace, argv: tuple[str, ...]) -> int:
    if not argv:
        raise ServiceError("start: no program was given after --")
    awaits_ready = options.ready_timeout > 0
    spec = Spec.here(check_name(options.name), argv, restart=options.restart, awaits_ready=awaits_ready)
    return _report_start(spec, options, again=False)


def _restart(options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    spec = _known(options.name)
    here = Spec.here(spec.name, spec.argv, restart=spec.restart, awaits_ready=spec.awaits_ready)
    return _report_start(here._replace(directory=spec.directory), options, again=True)


def _report_start(spec: Spec, options: argparse.Namespace, *, again: bool) -> int:
    ready_s = options.ready_timeout or 5.0
    did = services_here().start(spec, initial_s=options.initial_lease, ready_s=ready_s, again=again)
    print(f"{spec.name}: {did}")
    return 0


def _stop(options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    if bool(options.names) == options.all:
        raise ServiceError("stop: name services, or say --all")
    backend = services_here()
    names = [check_name(name) for name in options.names]
    stopped = backend.stop_all("stopped on request") if options.all else backend.stop(names)
    for name in sorted(set(names) | set(stopped)):
        print(f"{name}: {'stopped' if name in stopped else 'was not running'}")
    return 0


def _status(options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    backend, lease = services_here(), read_lease()
    services = backend.status()
    held = {"left_s": round(max(lease.left_s(), 0.0), 1), "holder": lease.holder} if lease else None
    if options.json:
        print(json.dumps({"backend": backend.name, "lease": held, "services": services}))
        return 0
    for service in services:
        state = service["state"] + (", ready" if service["ready"] else "")
        process = f", process {service['pid']}" if service["pid"] else ""
        reason = f": {service['reason']}" if service["reason"] else ""
        said = f"; its last line: {service['last_line']}" if service["last_line"] else ""
        print(f"{service['name']}: {state}{process}{reason}{said}")
    print(f"lease: {held['left_s']} s left" if held else "lease: none")
    return 0


def _logs(options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    print(services_here().tail(_known(options.name).name, options.lines))
    return 0


def _hold(options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    from payloads.services.hold import hold

    return hold(services_here(), options.ttl, options.wait, options.owner or _this_user(), options.purpose)


def _this_user() -> str:
    return f"{pwd.getpwuid(os.geteuid()).pw_name}@{platform.node()}"


def _lease(options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    from payloads.services.hold import HeldError
    from payloads.services.reserve import release, show, take

    owner = options.owner or _this_user()
    try:
        if options.action == "show":
            said = show()
        elif options.action == "take":
            said = take(owner, options.purpose, options.for_s, options.take_over_from, services_here)
        else:
            said = release(owner, services_here)
    except HeldError as error:
        print(json.dumps({"refused": error.by}))
        print(error, file=sys.stderr)
        return 3
    print(json.dumps(said))
    return 0


def _power(options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    from payloads.services.power import read_power, restore_power, set_power

    if options.action == "show":
        print(json.dumps({"power": read_power().as_json()}))
        return 0
    if options.action == "restore":
        said = restore_power(["run"])
        print(json.dumps(said))
        return 1 if said["problems"] else 0
    from payloads.services.keeper import ensure_keeper
    from payloads.services.shared import here_and_now, read_record, standing

    held = standing(read_record(), here_and_now()).held
    if held is None:
        raise ServiceError("power: nobody holds this host, so nobody would put it back")
    owner = held.owner  # of the run that this is for
    clocks = options.jetson_clocks
    said = set_power(options.mode, clocks=clocks, noted=lambda: ensure_keeper(owner, services_here))
    time.sleep(options.settle)
    print(json.dumps({"power": said}))
    return 0


def _keep(_options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    # Loaded now: the code may have been removed once a reservation ends.
    from payloads.services import supervised  # noqa: F401
    from payloads.services.keeper import keep_after_boot

    keep_after_boot(services_here)
    return 0


def _supervise(options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    from payloads.services.supervisor import serve

    return serve(options.ready_fd)


def _guard(options: argparse.Namespace, _argv: tuple[str, ...]) -> int:
    return guard(options.initial_lease)


def _known(name: str) -> Spec:
    check_name(name)
    spec = read_spec(service_folder(name)) if name in service_names() else None
    if spec is None:
        known = ", ".join(service_names()) or "none"
        raise ServiceError(f"{name}: no such service here (known: {known})")
    return spec


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
