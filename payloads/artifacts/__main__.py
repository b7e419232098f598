"""``python -m payloads.artifacts``: serve, pull, missing, adopt, show, verify and gc."""

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
    serve.add_argument(
        "--client-mbit", type=_positive, metavar="MBIT", help="what one client may take, in Mbit/s"
    )
    serve.set_defaults(run=_serve)
    pull = commands.add_parser("pull", help="pull the objects that are wanted and not here")
    pull.add_argument(
        "--from",
        dest="urls",
        action="append",
        required=True,
        metavar="http://HOST:PORT",
        help="a server of this lab; several are asked one after the other",
    )
    pull.add_argument(
        "--open",
        dest="open_urls",
        action="append",
        default=[],
        metavar="http://HOST:PORT/PATH",
        help="a web server that is asked before those, and shown no token",
    )
    pull.add_argument("--lanes", type=int, default=4, metavar="N", help="how many objects come at once")
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
    commands.add_parser("show", help="say what is here").set_defaults(run=_show)
    verify = commands.add_parser("verify", help="read all objects and remove the damaged ones")
    verify.set_defaults(run=_verify)
    gc = commands.add_parser("gc", help="remove objects that are not in use, by age and by space")
    gc.add_argument("--older-than", type=_positive, metavar="S", help="not used for so many seconds")
    gc.add_argument("--keep-bytes", type=int, metavar="N", help="until no more than so many are left")
    gc.set_defaults(run=_gc)
    for one in (verify, gc):
        one.add_argument("--dry-run", action="store_true", help="remove nothing")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _serve(options: argparse.Namespace) -> int:
    from payloads.artifacts.server import serve

    return serve(options.listen, options.key_file, options.client_mbit)


def _pull(options: argparse.Namespace) -> int:
    from payloads.artifacts.pull import Puller, Source, pull_all

    if options.lanes < 1:
        raise ArtifactError("--lanes: a number from 1 on was expected")
    store, begun = Store(), time.monotonic()
    wanted, token = read_wanted(options.wanted), bearer_token(options.key_file)
    sources = [Source(url, None) for url in options.open_urls]
    sources += [Source(url, token) for url in options.urls]
    puller = Puller(sources, store, timeout_s=options.timeout, lanes=options.lanes)
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


def _show(_options: argparse.Namespace) -> int:
    from payloads.artifacts.collect import describe

    print(json.dumps(describe(Store(make=False))))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from payloads.artifacts.collect import verify

    print(json.dumps(verify(Store(make=False), dry_run=options.dry_run)))
    return 0


def _gc(options: argparse.Namespace) -> int:
    from payloads.artifacts.collect import collect

    if options.older_than is None and options.keep_bytes is None:
        raise ArtifactError("gc: --older-than or --keep-bytes was expected")
    if options.keep_bytes is not None and options.keep_bytes < 0:
        raise ArtifactError("--keep-bytes: a number from 0 on was expected")
    chosen = {"older_than_s": options.older_than, "keep_bytes": options.keep_bytes}
    print(json.dumps(collect(Store(make=False), **chosen, dry_run=options.dry_run)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
