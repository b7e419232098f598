"""Processes of this machine that work for this one."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

__all__ = ["each_of", "process_pool"]

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


class _Process(SpawnProcess):
    """A process that Ctrl-C, which a terminal sends to all of them, ends without a traceback of its own."""

    def start(self) -> None:
        # Who is started begins with the same mask: Python's own start and all imports come before `run`.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        super().run()


class _Context(SpawnContext):
    Process = _Process


@contextmanager
def process_pool(
    jobs: int, begin: Callable[..., None] | None = None, given: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Give processes that end with the block. None is forked: it would inherit the threads of others.

    What was handed out is cancelled by the pool alone: were it cancelled elsewhere while Ctrl-C ends the processes,
    the pool's own thread would fail.

    Args:
        jobs: How many.
        begin: What each begins with.
        given: What that is given: it is handed over once to each, not with every task.
    """
    pool = ProcessPoolExecutor(jobs, _Context(), begin, given)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def each_of(
    work: Callable[[T], R], tasks: Iterable[T], jobs: int, begin: Callable[[S], None], given: S
) -> Iterator[R]:
    """Yield what processes make of each task, in order.

    Args:
        work: What makes it.
        tasks: The tasks.
        jobs: How many processes.
        begin: What each begins with.
        given: What that is given.
    """
    with process_pool(jobs, begin, (given,)) as pool:
        waiting = deque(pool.submit(work, task) for task in tasks)
        while waiting:
            yield waiting.popleft().result()
