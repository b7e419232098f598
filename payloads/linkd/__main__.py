"""The command line: ``python -m payloads.linkd serve | set | clear | show | restore | probe | respond``."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from payloads.linkd.client import Client
from payloads.linkd.errors import LinkdError, LinksError, NotRunningError
from payloads.linkd.model import DEFAULT_SLACK_US
from payloads.linkd.plan import Link, parse_links
from payloads.services.layout import home_folder

__all__ = ["main"]


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _parser() -> argparse.ArgumentParser:
    home = home_folder()
    parser = argparse.ArgumentParser(prog="linkd", description="Shape the links of the base station.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="own the interface's queueing disciplines until stopped")
    serve.add_argument("--interface", help="default: the one that routes to the first device")
    serve.add_argument(
        "--slack-us", type=float, default=DEFAULT_SLACK_US, help="the buckets' room for late timers"
    )
    set_ = commands.add_parser("set", help="shape these links and no others")
    set_.add_argument(
        "--links", required=True, help="JSON: device, address, port, downlink_mbit, uplink_mbit"
    )
    clear = commands.add_parser("clear", help="put everything back; also where the daemon is dead")
    show = commands.add_parser("show", help="rates and counters")
    show.add_argument("--json", action="store_true")
    restore = commands.add_parser(
        "restore", help="put everything back from the state file: the daemon is dead"
    )
    probe = commands.add_parser("probe", help="time messages to and from the devices, one JSON line each")
    probe.add_argument("--links", help="as for set; default: what the daemon has set")
    probe.add_argument("--sizes", default="1024,4096,8192,32768,131072", help="bytes, with commas between")
    probe.add_argument("--repeats", type=int, default=5)
    probe.add_argument("--tolerance", type=float, default=0.05)
    probe.add_argument("--retries", type=int, default=2, help="measure again what is outside the tolerance")
    probe.add_argument("--direction", choices=("downlink", "uplink"), help="default: both")
    respond = commands.add_parser("respond", help="answer probes: runs on the devices")
    respond.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    runs = (
        (serve, _serve),
        (set_, _set),
        (clear, _clear),
        (show, _show),
        (restore, _restore),
        (probe, _probe),
    )
    for command, run in (*runs, (respond, _respond)):
        command.set_defaults(run=run)
    for command in (serve, set_, clear, show, probe):
        command.add_argument("--socket", type=_path, default=home / "linkd.sock")
    for command in (serve, clear, restore):
        command.add_argument("--state", type=_path, default=home / "linkd.state.json")
    for command in (clear, restore):
        command.add_argument(
            "--wait", type=float, default=10.0, help="seconds to wait for another linkd's end"
        )
    for command in (probe, respond):
        command.add_argument("--key-file", type=_path, default=home / "key")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command; return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except LinkdError as error:
        print(f"linkd: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _serve(arguments: argparse.Namespace) -> None:
    from payloads.linkd.daemon import serve

    serve(arguments.socket, arguments.state, arguments.interface, arguments.slack_us)


def _set(arguments: argparse.Namespace) -> None:
    links = _links(arguments.links)
    with Client(arguments.socket) as client:
        print(json.dumps(client.set([link.as_json() for link in links])))


def _clear(arguments: argparse.Namespace) -> None:
    try:
        with Client(arguments.socket) as client:
            print(json.dumps(client.clear()))
    except NotRunningError:
        _restore(arguments)


def _show(arguments: argparse.Namespace) -> None:
    with Client(arguments.socket) as client:
        answer = client.show()
    print(json.dumps(answer) if arguments.json else _table(answer))


def _restore(arguments: argparse.Namespace) -> None:
    from payloads.linkd.kernel import Kernel
    from payloads.linkd.shaper import restore
    from payloads.linkd.state import StateFile

    state_file = StateFile(arguments.state)
    restored = None
    with state_file.lock(arguments.wait):
        if state_file.read() is not None:
            kernel = Kernel()
            try:
                restored = restore(kernel, state_file)
            finally:
                kernel.close()
    print(json.dumps({"restored": restored}))


def _probe(arguments: argparse.Namespace) -> None:
    from payloads.linkd.probe import DIRECTIONS, Settings, probe_device

    backend = None
    if arguments.links:
        links = _links(arguments.links)
    else:
        with Client(arguments.socket) as client:
            shown = client.show()
        if not shown["links"]:
            raise LinkdError("no links are set: linkd set, or probe --links")
        keys, backend = Link.__dataclass_fields__, shown["backend"]
        links = parse_links([{key: row[key] for key in keys} for row in shown["links"]])
    try:
        sizes = tuple(int(size) for size in arguments.sizes.split(","))
    except ValueError:
        raise LinksError(
            f"sizes: numbers with commas between were expected, not {arguments.sizes!r}"
        ) from None
    directions = (arguments.direction,) if arguments.direction else DIRECTIONS
    settings = Settings(sizes, arguments.repeats, arguments.tolerance, arguments.retries, directions)
    key = _key(arguments.key_file)
    for link in links:
        for row in probe_device(link, key, settings):
            print(json.dumps({**row, "backend": backend}), flush=True)


def _respond(arguments: argparse.Namespace) -> None:
    from payloads.linkd.respond import parse_address, respond

    _key(arguments.key_file)  # a key that cannot be read is said now, not at the first probe
    respond(*parse_address(arguments.listen), arguments.key_file)


def _key(path: Path) -> bytes:
    from payloads.wire.auth import AuthError, read_key

    try:
        return read_key(path)
    except AuthError as error:
        raise LinkdError(str(error)) from error


def _links(text: str) -> Sequence[Link]:
    """Return the links of a JSON text; host names become addresses here, as the base station knows them."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise LinksError(f"links: JSON was expected: {error}") from None
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict) and isinstance(item.get("address"), str):
            try:
                item["address"] = socket.gethostbyname(item["address"])
            except OSError as error:
                raise LinksError(f"links: {item['address']}: {error.strerror}") from error
    return parse_links(value)


def _table(answer: Dict[str, Any]) -> str:
    if answer["interface"] is None:
        return "no links are set"
    names = ("device", "direction", "Mbit/s", "bytes", "packets", "drops", "waiting")
    head = "{:<20} {:<9} {:>9} {:>14} {:>10} {:>7} {:>9}".format(*names)
    lines: List[str] = [f"{answer['interface']} (MTU {answer['mtu']}), uplink through {answer['ifb']}", head]
    for link in answer["links"]:
        for direction in ("downlink", "uplink"):
            counts = link[direction]
            lines.append(
                f"{link['device']:<20} {direction:<9} {link[direction + '_mbit']:>9g} {counts['bytes']:>14}"
                f" {counts['packets']:>10} {counts['drops']:>7} {counts['backlog_bytes']:>9}"
            )
    rest = answer["unshaped"]
    lines.append(f"{'(all else)':<20} {'downlink':<9} {'-':>9} {rest['bytes']:>14} {rest['packets']:>10}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
