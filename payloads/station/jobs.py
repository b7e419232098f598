"""The life of a base station: one job after the other, and a last line for every one of them."""

from __future__ import annotations

import sys
import traceback
from typing import Any, Callable, Dict, Tuple, Type

from payloads.station.control import AbandonedError, Control, Job

__all__ = ["do_jobs"]


def do_jobs(
    control: Control, do: Callable[[Job], Dict[str, Any]], failures: Tuple[Type[Exception], ...], service: str
) -> None:
    """Do one job after the other, for ever.

    Args:
        control: Where jobs come from.
        do: Does one and returns its result.
        failures: What ends a job and is no mistake of ours.
        service: The service's name, for what it says.
    """
    while True:
        job = control.next_job()
        try:
            answer = _answer(job, do, failures, service)
        finally:
            control.done()
        job.end(answer)


def _answer(
    job: Job, do: Callable[[Job], Dict[str, Any]], failures: Tuple[Type[Exception], ...], service: str
) -> Dict[str, Any]:
    """Do a job; return its last line."""
    try:
        return {"result": do(job)}
    except AbandonedError as error:
        print(f"{service}: {job.title}: abandoned: {error}", file=sys.stderr, flush=True)
        return {"error": "abandoned"}
    except failures as error:
        print(f"{service}: {job.title}: {error}", file=sys.stderr, flush=True)
        return {"error": str(error)}
    except Exception as error:
        # A mistake of ours must not take the service down; it is told to the client and logged in full.
        traceback.print_exc()
        return {"error": f"the {service} failed: {type(error).__name__}: {error}"}
