"""``python -m payloads.artifacts``: serve, pull, missing and adopt."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Sequence

from payloads.artifacts.store import ArtifactError, Store, bearer_token
from payloads.artifacts.wanted import read_wanted
from payloads.services.layout import home_folder


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ArtifactError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{error.filename or options.command}: {error.strerror or error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m payloads.artifacts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve this host's objects")
    serve.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    serve.set_defaults(run=_serve)
    pull = commands.add_parser("pull", help="pull the objects that are wanted and not here")
    pull.add_argument("--from", dest="url", required=True, metavar="http://HOST:PORT")
    pull.add_argument(
        "--timeout", type=float, default=20.0, metavar="S", help="longest silence of the server"
    )
    pull.set_defaults(run=_pull)
    missing = commands.add_parser("missing", help="print the wanted objects that are not here")
    missing.set_defaults(run=_missing)
    for one in (pull, missing):
        one.add_argument("--wanted", type=_path, required=True, metavar="FILE")
    for one in (serve, pull):
        one.add_argument("--key-file", type=_path, default=home_folder() / "key", metavar="FILE")
    adopt = commands.add_parser("adopt", help="move files that were sent here among the objects")
    adopt.add_argument("paths", type=_path, nargs="+", metavar="PATH")
    adopt.set_defaults(run=_adopt)
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _serve(options: argparse.Namespace) -> int:
    from payloads.artifacts.server import serve

    return serve(options.listen, options.key_file)


def _pull(options: argparse.Namespace) -> int:
    from payloads.artifacts.pull import Puller, pull_all

    store, begun = Store(), time.monotonic()
    wanted = read_wanted(options.wanted)
    puller = Puller(options.url, bearer_token(options.key_file), store, timeout_s=options.timeout)
    done = pull_all(store, wanted, puller)
    print(json.dumps(dict(done._asdict(), seconds=round(time.monotonic() - begun, 3))))
    return 0


def _missing(options: argparse.Namespace) -> int:
    store = Store()
    print(json.dumps([each.digest for each in read_wanted(options.wanted) if not store.is_present(*each)]))
    return 0


def _adopt(options: argparse.Namespace) -> int:
    store = Store()
    with store.changing():
        for path in options.paths:
            store.adopt(path)
    print(json.dumps({"adopted": len(options.paths)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
