"""Serve a campaign: bring the lab up as a run does, let clients in, and end in order when the user has had enough."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from testbed.campaigns import session
from testbed.campaigns.phases import Kind, Phase
from testbed.campaigns.runner import Runner
from testbed.campaigns.serving import Serving, serving_of
from testbed.campaigns.target import Finished, Target
from testbed.config.inventory import Host, Inventory
from testbed.errors import HostError
from testbed.hosts.forward import Forward
from testbed.hosts.payload import host_python, payload_command
from testbed.hosts.ssh import ssh_connect
from testbed.hosts.steps import Command

__all__ = ["Door", "Reached", "ServeRunner", "new", "serve", "stop_command"]

STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Reached:
    """Where clients reach what is served.

    Attributes:
        run: The run's name.
        base_station: The base station's name.
        remote_url: The address at the base station.
        url: The address on this machine; None where nothing leads there.
        model: The model's name.
        serving: How it is served.
    """

    run: str
    base_station: str
    remote_url: str
    url: str | None
    model: str
    serving: Serving

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "event": "serving",
            "run": self.run,
            "base_station": self.base_station,
            "remote_url": self.remote_url,
            "url": self.url,
            "model": self.model,
            "policy": self.serving.policy,
            "scenario": self.serving.scenario,
            "concurrency": self.serving.concurrency,
            "context_tokens": self.serving.context_tokens,
            "token": self.serving.token_file is not None,
        }

    def as_text(self) -> str:
        """Return it for people."""
        serving, url = self.serving, self.url or self.remote_url
        where = url if self.url is None else f"{url} ({self.remote_url} at {self.base_station})"
        key = f"$(cat {shlex.quote(str(serving.token_file))})" if serving.token_file else "none"
        return "\n".join(
            [
                f"{self.run} serves {self.model} under {serving.as_text()}",
                f"  OPENAI_BASE_URL={where}",
                f"  OPENAI_API_KEY={key}",
                f"  try: curl {url}/models",
                "Ctrl-C ends it in order: what was asked is recorded, and the report is made",
            ]
        )


OnUp = Callable[[Reached, Callable[[str], None]], None]


def new(
    results: Path,
    campaign_file: Path,
    inventory_file: Path | None,
    limit: Sequence[str],
    policy: str | None = None,
    scenario: str | None = None,
    concurrency: int | None = None,
    address: str = "127.0.0.1:8000",
    token_file: Path | None = None,
    context_tokens: int | None = None,
) -> Target:
    """Return a run that serves and has not been started yet.

    Args:
        results: The folder of the runs.
        campaign_file: The campaign file.
        inventory_file: Another lab than the campaign's.
        limit: Only these devices; all where it is empty.
        policy: The policy's name; the campaign's first where left out.
        scenario: The scenario's name; the campaign's first where left out.
        concurrency: How many requests are answered at once; as many as in the scenario where left out.
        address: Where the base station listens.
        token_file: The local file of the token that clients must show.
        context_tokens: The most tokens of a request, prompt and answer; as many as the model reads where left out.

    Raises:
        InputError: A file or an option is wrong.
    """
    target = session.new(results, campaign_file, inventory_file, limit)
    campaign = session.experts_campaign(target)
    serving = serving_of(campaign, policy, scenario, concurrency, address, token_file, context_tokens)
    return replace(target, serving=serving)


def serve(target: Target, on_up: OnUp, *, port: int | None, for_s: float | None = None) -> Finished:
    """Serve until the user ends it, or for some seconds; return how it ended.

    Args:
        target: What is served.
        on_up: Told where clients reach it, once they do, and given what prints a line for people.
        port: The port of this machine that leads there; None for none.
        for_s: End after so long.

    Raises:
        TestbedError: The lab could not be brought up or put back.
        KeyboardInterrupt: The user stopped it before it served, or a second time.
    """
    with contextlib.closing(Door(target, port)) as door:
        runners: list[ServeRunner] = []

        def make_runner(*args: Any) -> ServeRunner:
            runners.append(ServeRunner(*args))
            runners[-1].prepare(target, door, on_up, for_s)
            return runners[-1]

        with _ended_by_signal(lambda: any(runner.end() for runner in runners)):
            return session.execute(target, make_runner)


class Door:
    """The way to the base station beside the run's own: what clients come through, and what ends the serving.

    Args:
        target: What is served.
        port: The port of this machine that leads there; None for none.

    Raises:
        InputError: The port is taken.
    """

    def __init__(self, target: Target, port: int | None) -> None:
        assert target.serving is not None
        self._inventory = target.inventory
        self._way = ssh_connect(target.inventory.known_hosts)(target.inventory.base_station)
        where = target.serving.listens
        self._forward = None if port is None else Forward(port, lambda: self._way.tunnel(*where))

    @property
    def url(self) -> str | None:
        """The address on this machine; None where nothing leads there."""
        return None if self._forward is None else f"http://127.0.0.1:{self._forward.port}/v1"

    def stop(self) -> None:
        """Let the serving end in order.

        Raises:
            HostError: The base station did not hear it.
        """
        self._way.run(stop_command(self._inventory))

    def close(self) -> None:
        """Let nobody in any more."""
        if self._forward is not None:
            self._forward.close()
        self._way.close()


class ServeRunner(Runner):
    """Carries out a run that serves: lets clients in when the base station does, and ends it when it is told to."""

    keeps_failed = True  # what was answered before was answered

    def prepare(self, target: Target, door: Door, on_up: OnUp, for_s: float | None) -> None:
        """Take what is to be done; see :func:`serve`."""
        assert target.serving is not None
        self._target, self._serving, self._door = target, target.serving, door
        self._on_up, self._for_s = on_up, for_s
        self._up = threading.Event()
        self._ending = threading.Event()

    def listen(self, phase: Phase, line: str) -> None:
        """Let clients in when the base station says that it serves, and show how many requests it took."""
        if phase.kind is not Kind.TRIAL:
            return
        try:
            message = json.loads(line)
            taken, url = int(message["done"]), str(message["what"]).partition("serving at ")[2]
        except (ValueError, TypeError, KeyError):
            return
        if url and not self._up.is_set():
            self._up.set()
            self._begin(url)
        self.reporter.within(phase, taken, taken, "requests")

    def end(self) -> bool:
        """Let the serving end in order, if it has begun and nobody did so before; return whether that is so."""
        if not self._up.is_set() or self._ending.is_set():
            return False
        self._ending.set()
        threading.Thread(target=self._stop, name="stop", daemon=True).start()
        return True

    def _begin(self, remote_url: str) -> None:
        name, model = (
            self._target.inventory.base_station.name,
            session.experts_campaign(self._target).model_name,
        )
        reached = Reached(self._target.run, name, remote_url, self._door.url, model, self._serving)
        self._on_up(reached, self.reporter.note)
        if self._for_s is not None:
            timer = threading.Timer(self._for_s, self.end)
            timer.daemon = True
            timer.start()

    def _stop(self) -> None:
        self.reporter.note("ending: what is not answered yet is given up (Ctrl-C again: at once)")
        try:
            self._door.stop()
        except HostError as error:
            self.reporter.note(f"it does not end in order: {error}")


def stop_command(inventory: Inventory) -> Command:
    """Return what ends the serving in order."""
    host: Host = inventory.base_station
    shell = payload_command(host_python(host), "station.bsctl", "stop")
    return Command(host.name, shell, "stop serving", STOP_TIMEOUT_S)


@contextlib.contextmanager
def _ended_by_signal(end: Callable[[], bool]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the serving in order; before it has begun and a second time they interrupt."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if not end():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
