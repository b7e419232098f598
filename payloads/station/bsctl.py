"""Ask the base station for work and print what it says.

    python -m payloads.station.bsctl trial --spec ~/.testbed/runs/RUN/spec.json --trial t003
    python -m payloads.station.bsctl quality --spec ~/.testbed/runs/RUN/spec.json --policy top-1 [--scenario even]
    python -m payloads.station.bsctl serve --spec ~/.testbed/runs/RUN/spec.json --policy top-2 --trial serve-001
    python -m payloads.station.bsctl stop
    python -m payloads.station.bsctl status
    python -m payloads.station.bsctl ping

Whoever asks for work waits for a base station that is being started again, such as one that was killed: as long as a
start may take, and no longer than the service is going to run.

Prints JSON lines; the last one holds the result. When this process ends, the base station abandons the work; what was
served is recorded all the same.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence

from payloads.services.layout import ServiceError
from payloads.services.systemd import services_here

__all__ = ["main"]

NAME = "bsctl"
SERVICE = "base-station"
START_S = 90.0
"""How long a base station that starts is waited for: as long as a campaign waits for its first start."""
AT_ONCE = ("status", "stop")  # these want to know what is now
_LOOK_S = 0.5


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Ask and print; return the exit status."""
    options = _parse(arguments)
    request: Dict[str, Any] = {"do": options.do}
    for key in ("spec", "trial", "policy", "scenario"):
        if getattr(options, key, None) is not None:
            request[key] = str(getattr(options, key))
    for key in ("concurrency", "context_tokens"):
        if getattr(options, key, None) is not None:
            request[key] = getattr(options, key)
    try:
        with _connected(options.control, 0.0 if options.do in AT_ONCE else START_S) as connection:
            return _ask(connection, request)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"{NAME}: cannot reach the base station at {options.control}: {reason}", file=sys.stderr)
        return 1


def _connected(control: Path, wait_s: float) -> socket.socket:
    """Connect to the base station; one that is being started is waited for.

    Args:
        control: The control socket.
        wait_s: The longest wait, in seconds.

    Raises:
        OSError: There is none, and none is about to be there.
    """
    deadline = time.monotonic() + wait_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(control))
            return connection
        except OSError as error:
            connection.close()
            missing = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
            if not missing or time.monotonic() >= deadline or not _will_be_there():
                raise
        time.sleep(_LOOK_S)


def _will_be_there() -> bool:
    """Tell whether the base station runs or is going to, by what looks after the services of this host."""
    try:
        services = services_here().status()
    except ServiceError:
        return False
    # One that was killed just now is still said to run; one that is given up is not.
    states = ("running", "waiting", "ending")
    return any(each["name"] == SERVICE and each["state"] in states for each in services)


def _ask(connection: socket.socket, request: Dict[str, Any]) -> int:
    connection.sendall(json.dumps(request).encode() + b"\n")
    for line in _lines(connection):
        answer = json.loads(line.decode())
        if "error" in answer:
            print(answer["error"], file=sys.stderr)
            return 1
        print(json.dumps(answer), flush=True)
        if "result" in answer:
            return 0
    print(f"{NAME}: the base station went away", file=sys.stderr)
    return 1


def _lines(connection: socket.socket) -> Iterator[bytes]:
    """Yield lines until the other end closes, or until nobody reads our output any more."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    # Without events asked for, a pipe reports only that its reader has gone: the SSH session was cut.
    poll.register(sys.stdout.fileno(), 0)
    data = b""
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != connection.fileno():
                raise BrokenPipeError
            part = connection.recv(1 << 16)
            if not part:
                return
            data += part
        while b"\n" in data:
            line, _, data = data.partition(b"\n")
            yield line


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=NAME, description="Ask the base station for work.")
    parser.add_argument(
        "--control", type=_path, default=_path("~/.testbed/bs.sock"), help="the control socket"
    )
    verbs = parser.add_subparsers(dest="do", required=True)
    trial = verbs.add_parser("trial", help="run a trial")
    trial.add_argument("--spec", type=_path, required=True)
    trial.add_argument("--trial", required=True)
    quality = verbs.add_parser("quality", help="measure the quality of a policy")
    quality.add_argument("--spec", type=_path, required=True)
    quality.add_argument("--policy", required=True)
    quality.add_argument("--scenario", help="the scenario whose links the policy's selection follows")
    serve = verbs.add_parser("serve", help="answer requests of the API until it is stopped")
    serve.add_argument("--spec", type=_path, required=True)
    serve.add_argument("--policy", required=True)
    serve.add_argument("--trial", required=True, help="the name that it has in the records")
    serve.add_argument("--concurrency", type=int, default=1, help="how many requests are answered at once")
    serve.add_argument(
        "--context",
        type=int,
        dest="context_tokens",
        metavar="TOKENS",
        help="the most tokens of a request, prompt and answer; as many as the model reads by default",
    )
    verbs.add_parser("stop", help="end the serving in order")
    verbs.add_parser("status", help="what the base station does")
    verbs.add_parser("ping", help="connect all devices and read their clocks")
    return parser.parse_args(arguments)


def _path(text: str) -> Path:
    return Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())
