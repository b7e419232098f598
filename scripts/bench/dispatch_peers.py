"""What others send tensors with, each used as its own documentation says: for ``dispatch.py``."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dispatch_ours import ELEMENT_BYTES, WORKERS, Rounds, workers

_GRPC_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_GRPC_METHOD = "/bench/echo"


def pyzmq(stack: ExitStack, folder: Path) -> Rounds:
    """ZeroMQ: a DEALER for each worker's ROUTER, without copies."""
    import zmq

    context = zmq.Context()
    stack.callback(context.destroy, linger=0)
    sockets = []
    for port in workers(stack, serve_pyzmq):
        sockets.append(context.socket(zmq.DEALER))
        sockets[-1].connect(f"tcp://127.0.0.1:{port}")

    def rounds(tokens: int, hidden: int) -> Callable[[], None]:
        message = os.urandom(tokens * hidden * ELEMENT_BYTES)

        def run() -> None:
            for one in sockets:
                one.send(message, copy=False)
            for one in sockets:
                if len(one.recv(copy=False)) != len(message):
                    raise AssertionError("an answer of another size")

        return run

    return rounds


def serve_pyzmq(ready: Connection) -> None:
    """Echo messages."""
    import zmq

    router = zmq.Context().socket(zmq.ROUTER)
    ready.send(router.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        router.send_multipart(router.recv_multipart(copy=False), copy=False)


def grpc_streams(stack: ExitStack, folder: Path) -> Rounds:
    """gRPC: a bidirectional stream of raw bytes to each worker."""
    import grpc

    questions: list[queue.SimpleQueue[bytes | None]] = []
    answers: list[Iterator[bytes]] = []
    for port in workers(stack, serve_grpc):
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=_GRPC_OPTIONS))
        mine: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        questions.append(mine)
        answers.append(channel.stream_stream(_GRPC_METHOD)(iter(mine.get, None)))
        stack.callback(mine.put, None)

    def rounds(tokens: int, hidden: int) -> Callable[[], None]:
        message = os.urandom(tokens * hidden * ELEMENT_BYTES)

        def run() -> None:
            for question in questions:
                question.put(message)
            for answer in answers:
                if len(next(answer)) != len(message):
                    raise AssertionError("an answer of another size")

        return run

    return rounds


def serve_grpc(ready: Connection) -> None:
    """Echo messages."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def echo(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from messages

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(echo) if details.method == _GRPC_METHOD else None

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handlers()], options=_GRPC_OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready.send(port)
    server.wait_for_termination()


def torch_rpc(stack: ExitStack, folder: Path) -> Rounds:
    """torch.distributed.rpc: a remote call with a tensor for each worker."""
    import torch
    from torch.distributed import rpc

    place = f"file://{folder / 'rpc'}"
    # They join one another, so none of them can be awaited before this process has joined too.
    say = _joining(stack, place)
    _join(place, "bench", 0)
    stack.callback(rpc.shutdown, graceful=False)
    say()
    names = [f"rpc{number}" for number in range(WORKERS)]

    def rounds(tokens: int, hidden: int) -> Callable[[], None]:
        rows = torch.randn(tokens, hidden).to(torch.bfloat16)

        def run() -> None:
            calls = [rpc.rpc_async(name, echo_tensor, args=(rows,)) for name in names]
            for answer in torch.futures.wait_all(calls):
                if answer.shape != rows.shape:
                    raise AssertionError("an answer of another size")

        return run

    return rounds


def _joining(stack: ExitStack, place: str) -> Callable[[], None]:
    import threading

    started: list[Any] = []
    thread = threading.Thread(
        target=lambda: started.extend(
            workers(stack, serve_rpc, [place] * WORKERS, list(range(1, WORKERS + 1)))
        )
    )
    thread.start()

    def wait() -> None:
        thread.join()
        if len(started) != WORKERS:
            raise RuntimeError("a worker of torch.distributed.rpc did not start")

    return wait


def _join(place: str, name: str, rank: int) -> None:
    from torch.distributed import rpc

    # Over TCP, as between machines: shared memory is not what is compared here.
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=place, num_worker_threads=4, _transports=["uv"], _channels=["basic"]
    )
    rpc.init_rpc(name, rank=rank, world_size=WORKERS + 1, rpc_backend_options=options)


def serve_rpc(ready: Connection, place: str, rank: int) -> None:
    """Serve remote calls until the process ends."""
    import threading

    import torch

    torch.set_num_threads(1)
    _join(place, f"rpc{rank - 1}", rank)
    ready.send(rank)
    threading.Event().wait()


def echo_tensor(rows: Any) -> Any:
    """Return what was sent."""
    return rows


def ray_actors(stack: ExitStack, folder: Path) -> Rounds:
    """Ray: an actor for each worker."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import numpy as np
    import ray

    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=256 << 20,
    )
    stack.callback(ray.shutdown)

    @ray.remote  # type: ignore[untyped-decorator]
    class Echo:
        def echo(self, rows: Any) -> Any:
            return rows

    actors = [Echo.remote() for _ in range(WORKERS)]

    def rounds(tokens: int, hidden: int) -> Callable[[], None]:
        rows = np.zeros((tokens, hidden), dtype=np.float16)

        def run() -> None:
            for answer in ray.get([actor.echo.remote(rows) for actor in actors]):
                if answer.shape != rows.shape:
                    raise AssertionError("an answer of another size")

        return run

    return rounds
