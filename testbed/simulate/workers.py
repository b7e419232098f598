"""Who simulates the units of a sweep: processes of this machine, or a Dask cluster by its address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, NamedTuple

from testbed.errors import InputError, TestbedError
from testbed.simulate.processes import process_pool

__all__ = ["Workers", "cluster_workers", "local_workers"]

CONNECT_S = 20


class Workers(NamedTuple):
    """Who does the work.

    Attributes:
        executor: Takes it.
        slots: How many units it works on at a time.
        about: What it is, in words.
    """

    executor: Executor
    slots: int
    about: str


@contextmanager
def local_workers(jobs: int) -> Iterator[Workers]:
    """Give processes of this machine, which end with the block.

    Args:
        jobs: How many.
    """
    # One thread each, since there is one process a processor.
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with process_pool(jobs) as pool:
            yield Workers(pool, jobs, f"{jobs} processes" if jobs > 1 else "1 process")
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def cluster_workers(address: str) -> Iterator[Workers]:
    """Give the workers of a Dask cluster; the cluster stays when the block ends.

    They need this version of testbed. What is sent to them and back is pickled, as Dask does: use a cluster of your
    own.

    Args:
        address: The scheduler's, such as ``tcp://10.0.0.5:8786``.

    Raises:
        InputError: dask.distributed is not installed.
        TestbedError: There is no such cluster, it has no worker, or its versions are others.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(
            "dask.distributed is not installed",
            hint="in testbed's folder: pip install -c constraints.txt -e '.[cluster]'",
        ) from error
    _check_address(address)
    try:
        client: Any = Client(address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise TestbedError(
            f"no Dask scheduler answers at {address}: {error}", hint="`dask scheduler` starts one"
        ) from error
    with client:
        slots = sum(client.nthreads().values())
        if not slots:
            raise TestbedError(
                f"the Dask cluster at {address} has no worker", hint=f"start some: `dask worker {address}`"
            )
        others = {version for version in client.run(_version).values() if version != _version()}
        if others:
            raise TestbedError(
                f"workers at {address} have testbed {', '.join(sorted(others))}, and this is {_version()}",
                hint="install this version there",
            )
        executor = client.get_executor(pure=False)
        try:
            yield Workers(executor, slots, f"the Dask cluster at {address}, {slots} threads")
        finally:
            executor.shutdown(wait=False)  # what nobody waits for any more is cancelled


def _check_address(address: str) -> None:
    """Refuse what is no address: a client that was given one would wait for it when it is thrown away."""
    from distributed.comm.addressing import get_address_host_port

    try:
        get_address_host_port(address)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"--dask: {error}", hint="the scheduler's address is like tcp://10.0.0.5:8786"
        ) from error


def _version() -> str:
    from testbed import __version__

    return __version__
