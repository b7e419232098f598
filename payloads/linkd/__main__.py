"""The command line: ``python -m payloads.linkd VERB``."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import socket
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from payloads.linkd.client import Client
from payloads.linkd.errors import LinkdError, LinksError, NotRunningError
from payloads.linkd.model import DEFAULT_SLACK_US
from payloads.linkd.plan import LEAVES, SIDES, Link, parse_links
from payloads.linkd.session import DEFAULT_SAMPLE_HZ, MAX_SAMPLE_HZ
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
    serve.add_argument(
        "--leaf",
        choices=("auto", *LEAVES),
        default="auto",
        help="what holds the packets (default: %(default)s)",
    )
    serve.add_argument(
        "--side", choices=SIDES, default="bs", help="device: runs on a device and shapes its uplink"
    )
    serve.add_argument(
        "--backend", choices=("kernel", "pacing"), default="kernel",
        help="pacing: no root; keeps the rates for those who own the sockets",
    )  # fmt: skip
    serve.add_argument(
        "--sample-hz", type=_sample_hz, default=DEFAULT_SAMPLE_HZ, help="samples of the counters; 0: none"
    )
    set_ = commands.add_parser("set", help="shape these links and no others")
    set_.add_argument(
        "--links", required=True,
        help="JSON: device, address, port, downlink_mbit, uplink_mbit, delay_ms, jitter_ms, loss_percent",
    )  # fmt: skip
    set_.add_argument("--channel", help="a channel file; its mean rates are in force until play")
    play = commands.add_parser("play", help="start the channel's clock now")
    hold = commands.add_parser("hold", help="stop the channel's clock; the rates in force stay")
    rerate = commands.add_parser("rerate", help="change the rates of some devices in place")
    rerate.add_argument("--rates", required=True, help='JSON: {"DEVICE": {"downlink_mbit": 3.5}}')
    allocate = commands.add_parser("allocate", help="share the bandwidth out anew")
    allocate.add_argument(
        "--shares", required=True, help='JSON: {"DEVICE": 0.25} or {"DEVICE": {"uplink": 0.25}}'
    )
    allocate.add_argument("--why", help="a few words for the history")
    history = commands.add_parser("history", help="every change and every sample since the last set, as JSON")
    watch = commands.add_parser("watch", help="print every change and every sample as it happens")
    able = commands.add_parser("capabilities", help="try out what this host's kernel can do")
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
    probe.add_argument(
        "--within", type=float, default=math.inf, metavar="SECONDS",
        help="fewer messages of a size where they take longer, but at least three",
    )  # fmt: skip
    probe.add_argument("--tolerance", type=float, default=0.05)
    probe.add_argument("--retries", type=int, default=2, help="measure again what is outside the tolerance")
    probe.add_argument("--direction", choices=("downlink", "uplink"), help="default: both")
    probe.add_argument(
        "--busy", action="store_true", help="also with all other links at full load in both directions"
    )
    probe.add_argument(
        "--device", action="append", help="only this one, and so again; its links still count for --busy"
    )
    load = commands.add_parser("load", help="full load on links for a time; prints what arrived")
    load.add_argument("--links", help="as for set; default: what the daemon has set")
    load.add_argument("--seconds", type=float, default=10.0)
    load.add_argument(
        "--controlled", action="store_true", help="end with the standard input; count at each of its lines"
    )
    respond = commands.add_parser("respond", help="answer probes: runs on the devices")
    respond.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    runs = (
        (serve, _serve),
        (set_, _set),
        (clear, _clear),
        (show, _show),
        (restore, _restore),
        (play, _simple),
        (hold, _simple),
        (rerate, _rerate),
        (allocate, _allocate),
        (history, _simple),
        (watch, _watch),
        (able, _capabilities),
        (probe, _probe),
        (load, _load),
    )
    for command, run in (*runs, (respond, _respond)):
        command.set_defaults(run=run)
    talking = (set_, play, hold, rerate, allocate, history, watch, clear, show, probe, load)
    for command in (serve, *talking):
        command.add_argument("--socket", type=_path, default=home / "linkd.sock")
    for command in (serve, clear, restore):
        command.add_argument("--state", type=_path, default=home / "linkd.state.json")
    for command in (clear, restore):
        command.add_argument(
            "--wait", type=float, default=10.0, help="seconds to wait for another linkd's end"
        )
    for command in (probe, load, respond):
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
    from payloads.linkd.daemon import Options, serve

    options = Options(
        interface=arguments.interface,
        slack_us=arguments.slack_us,
        side=arguments.side,
        leaf=arguments.leaf,
        backend=arguments.backend,
        sample_hz=arguments.sample_hz,
    )
    serve(arguments.socket, arguments.state, options)


def _set(arguments: argparse.Namespace) -> None:
    links = _resolved(arguments.links)
    channel = str(Path(arguments.channel).expanduser().absolute()) if arguments.channel else None
    with Client(arguments.socket) as client:
        print(json.dumps(client.set(links, channel)))


def _simple(arguments: argparse.Namespace) -> None:
    with Client(arguments.socket) as client:
        print(json.dumps(client.request(arguments.command)))


def _rerate(arguments: argparse.Namespace) -> None:
    rates = _json("rates", arguments.rates)
    with Client(arguments.socket) as client:
        print(json.dumps(client.rerate(rates)))


def _allocate(arguments: argparse.Namespace) -> None:
    shares = _json("shares", arguments.shares)
    with Client(arguments.socket) as client:
        print(json.dumps(client.allocate(shares, arguments.why)))


def _watch(arguments: argparse.Namespace) -> None:
    with Client(arguments.socket) as client, contextlib.suppress(KeyboardInterrupt):
        for event in client.watch():
            print(json.dumps(event), flush=True)


def _capabilities(arguments: argparse.Namespace) -> None:
    from payloads.linkd.capabilities import capabilities

    print(json.dumps(capabilities(), indent=1))


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
    from payloads.linkd.links import DIRECTIONS
    from payloads.linkd.load import LoadProcess
    from payloads.linkd.probe import Settings, probe_links

    links, backends = _links_in_force(arguments)
    try:
        sizes = tuple(int(size) for size in arguments.sizes.split(","))
    except ValueError:
        raise LinksError(
            f"sizes: numbers with commas between were expected, not {arguments.sizes!r}"
        ) from None
    directions = (arguments.direction,) if arguments.direction else DIRECTIONS
    settings = Settings(
        sizes, arguments.repeats, arguments.tolerance, arguments.retries, directions, arguments.busy,
        arguments.within,
    )  # fmt: skip

    def load(others: Sequence[Link], seconds: float) -> LoadProcess:
        return LoadProcess(others, arguments.key_file, seconds)

    for row in probe_links(links, _key(arguments.key_file), settings, backends, load, arguments.device):
        print(json.dumps(row), flush=True)


def _load(arguments: argparse.Namespace) -> None:
    from payloads.linkd.load import Load, serve_load

    links, _backends = _links_in_force(arguments)
    load = Load(links, _key(arguments.key_file), arguments.seconds)
    serve_load(load, arguments.controlled, sys.stdin.fileno(), lambda line: print(line, flush=True))


def _links_in_force(arguments: argparse.Namespace) -> Tuple[Sequence[Link], Dict[Tuple[str, str], str]]:
    """Return the links that are set, or that were given, and what shapes each device's directions."""
    if arguments.links:
        return _links_and_backends(arguments.links)
    with Client(arguments.socket) as client:
        shown = client.show()
    if not shown["links"]:
        raise LinkdError("no links are set: linkd set, or name them with --links")
    return _links_and_backends(
        json.dumps(
            [
                {**{key: row[key] for key in Link.__dataclass_fields__}, "backends": row["backends"]}
                for row in shown["links"]
            ]
        )
    )


def _respond(arguments: argparse.Namespace) -> None:
    from payloads.linkd.respond import parse_address, respond

    _key(arguments.key_file)  # a key that cannot be read is said now, not at the first probe
    respond(*parse_address(arguments.listen), arguments.key_file)


def _links_and_backends(text: str) -> Tuple[Sequence[Link], Dict[Tuple[str, str], str]]:
    """Return links, and the backends that stand beside them: a name for each direction."""
    try:
        items = json.loads(text)
    except ValueError as error:
        raise LinksError(f"links: JSON was expected: {error}") from None
    backends: Dict[Tuple[str, str], str] = {}
    for item in items if isinstance(items, list) else ():
        named = item.pop("backends", None) if isinstance(item, dict) else None
        for direction in ("downlink", "uplink") if named is not None else ():
            name = named.get(direction) if isinstance(named, dict) else None
            if not isinstance(name, str):
                raise LinksError(f"links: backends: a name for each direction was expected, not {named!r}")
            backends[str(item.get("device")), direction] = name
    return _links(json.dumps(items)), backends


def _key(path: Path) -> bytes:
    from payloads.wire.auth import AuthError, read_key

    try:
        return read_key(path)
    except AuthError as error:
        raise LinkdError(str(error)) from error


def _json(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise LinksError(f"{what}: JSON was expected: {error}") from None


def _sample_hz(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MAX_SAMPLE_HZ:
        raise argparse.ArgumentTypeError(f"0 to {MAX_SAMPLE_HZ:g} were expected, not {text}")
    return value


def _resolved(text: str) -> Any:
    """Return the value of a JSON text; host names become addresses here, as the base station knows them."""
    value = _json("links", text)
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict) and isinstance(item.get("address"), str):
            try:
                item["address"] = socket.gethostbyname(item["address"])
            except OSError as error:
                raise LinksError(f"links: {item['address']}: {error.strerror}") from error
    return value


def _links(text: str) -> Sequence[Link]:
    """Return the links of a JSON text."""
    return parse_links(_resolved(text))


def _table(answer: Dict[str, Any]) -> str:
    if not answer["links"]:
        return "no links are set"
    names = ("device", "direction", "Mbit/s", "bytes", "packets", "drops", "waiting")
    head = "{:<20} {:<9} {:>9} {:>14} {:>10} {:>7} {:>9}".format(*names)
    through = f", uplink through {answer['ifb']}" if answer["ifb"] else ""
    lines: List[str] = []
    if answer["interface"]:
        lines.append(f"{answer['interface']} (MTU {answer['mtu']}){through}: {answer['backend']}")
    else:
        lines.append(f"{answer['backend']}: the sockets' owners pace; nothing is counted here")
    if answer["channel"]:
        state = "playing" if answer["playing"] else "held"
        lines.append(
            f"channel of {answer['channel']['blocks']} blocks in {answer['channel']['duration_s']:g} s, {state}"
        )
    if "line" in answer:
        lines.append(f"user-space line: {answer['line']}")
    lines.append(head)
    for link in answer["links"]:
        for direction in ("downlink", "uplink"):
            rate = link[f"{direction}_mbit"]
            asked = f"{link['device']:<20} {direction:<9} {'-' if rate is None else f'{rate:g}':>9}"
            counts = link[direction]
            if counts is None:
                lines.append(asked)
                continue
            lines.append(
                f"{asked} {counts['bytes']:>14}"
                f" {counts['packets']:>10} {counts['drops']:>7} {counts['backlog_bytes']:>9}"
            )
    if "unshaped" in answer:
        rest = answer["unshaped"]
        lines.append(f"{'(all else)':<20} {'out':<9} {'-':>9} {rest['bytes']:>14} {rest['packets']:>10}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
