"""``python -m payloads.boardlog``: power, jtop, wifi and rails."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Sequence

from payloads.boardlog.power import BoardLogError


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except BoardLogError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or options.command}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m payloads.boardlog", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    power = commands.add_parser("power", help="log the power of every rail, from sysfs")
    power.set_defaults(run=_power)
    jtop = commands.add_parser("jtop", help="log what jtop reports")
    jtop.set_defaults(run=_jtop)
    wifi = commands.add_parser("wifi", help="log what iw tells of a wireless link")
    wifi.set_defaults(run=_wifi)
    wifi.add_argument("--interface", default="wlan0", metavar="IF")
    for one, hz in ((power, 20.0), (jtop, 2.0), (wifi, 1.0)):
        one.add_argument("--out", type=_path, required=True, metavar="FILE")
        one.add_argument("--hz", type=_rate, default=hz, metavar="HZ")
    jtop.add_argument(
        "--stall", type=float, default=5.0, metavar="S", help="connect anew after such a silence"
    )
    rails = commands.add_parser("rails", help="show the power rails and how the total follows from them")
    rails.add_argument("--json", action="store_true")
    rails.set_defaults(run=_rails)
    for one in (power, wifi, rails):
        one.add_argument("--root", type=_path, default=Path("/sys"), metavar="FOLDER", help="where sysfs is")
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _rate(text: str) -> float:
    rate = float(text)
    if not 0.01 <= rate <= 200:
        raise argparse.ArgumentTypeError("expected a rate from 0.01 to 200 Hz")
    return rate


def _power(options: argparse.Namespace) -> None:
    from payloads.boardlog.power import record_power
    from payloads.boardlog.ticks import Stop

    record_power(options.root, options.out, options.hz, Stop().wait)


def _jtop(options: argparse.Namespace) -> None:
    from payloads.boardlog.jtoplog import record_jtop

    record_jtop(options.out, options.hz, options.stall)


def _wifi(options: argparse.Namespace) -> None:
    from payloads.boardlog.ticks import Stop
    from payloads.boardlog.wifi import record_wifi

    record_wifi(options.interface, options.out, options.hz, Stop().wait, options.root)


def _rails(options: argparse.Namespace) -> None:
    from payloads.boardlog.rails import find_rails, total_rule

    names = [rail.name for rail in find_rails(options.root)]
    if not names:
        raise BoardLogError(f"no power rail under {options.root}/bus/i2c/devices: is this a Jetson?")
    rule = total_rule(names)
    if options.json:
        print(json.dumps({"rails": names, "total_rule": rule.rule, "note": rule.note}))
    else:
        print("\n".join([*names, f"total: {rule.rule} ({rule.note})"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
