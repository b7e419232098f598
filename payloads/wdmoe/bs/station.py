"""What the base station does: trials and quality passes over the model and the devices."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional

from payloads.linkd.channel import ChannelError, read_channel
from payloads.wdmoe.allocation.bandwidth import LEAVE_ALONE
from payloads.wdmoe.bs.fleet import Devices, read_fleet
from payloads.wdmoe.bs.generate import generate
from payloads.wdmoe.bs.heldout import QualityError
from payloads.wdmoe.bs.link_facts import UNSHAPED, LinkFacts, link_facts, refined
from payloads.wdmoe.bs.link_feed import LinkFeed
from payloads.wdmoe.bs.links import LinkControl, LinkControlError
from payloads.wdmoe.bs.model_folder import ModelFolder, StationError, lay_out_model
from payloads.wdmoe.bs.pacing import LinkPacing
from payloads.wdmoe.bs.quality import QualityPass, References, measure, read_items, read_windows
from payloads.wdmoe.bs.records import Records
from payloads.wdmoe.bs.remote import Dispatcher
from payloads.wdmoe.bs.remote_model import load_model
from payloads.wdmoe.bs.spec import Prompt, ScenarioSpec, Spec, SpecError, quality_name
from payloads.wdmoe.decision import Decider, decider_of
from payloads.wdmoe.dispatch import Decided
from payloads.wdmoe.families import FAMILIES
from payloads.wdmoe.judge import Judge
from payloads.wdmoe.latency import LatencyError
from payloads.wdmoe.link_state import VirtualLinks
from payloads.wdmoe.user_policy import is_user_kind
from payloads.wire.client import Exchange
from payloads.wire.clock import BSClock, Offset, OffsetTrack

__all__ = ["Station", "StationError", "lay_out_model"]

#: Called with what is done, of how many, and what comes now.
Progress = Callable[[int, int, str], None]


class Station:
    """The model, the devices, and what is done with them.

    Attributes:
        model: The model, without experts.
        clock: The base station's clock.
        folder: Where the model was loaded from.

    Args:
        folder: Where to load the model from.
        devices_file: Devices and placement; read at each trial.
        key_file: The data plane's key.
        dtype: The run's element type.
        links: linkd's socket, where it shapes the links.
        pacing: Whether the devices' sockets are to be kept at the rates that linkd tells.
    """

    def __init__(
        self,
        folder: ModelFolder,
        devices_file: Path,
        key_file: Path,
        dtype: str,
        links: Optional[Path] = None,
        pacing: bool = False,
    ) -> None:
        from transformers import AutoTokenizer

        self.folder = folder
        self.clock = BSClock()
        self._dtype = dtype
        self._devices_file = devices_file
        self._links = links
        self._pacing = links if pacing else None
        self._exchange = Exchange()
        self._dispatcher = Dispatcher(self._exchange)
        self._devices = Devices(self._exchange, key_file)
        self._references = References()
        self._family = FAMILIES[folder.manifest["family"]]
        self.model = load_model(folder.path, self._family, dtype, self._dispatcher)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder.path), local_files_only=True)
        self._end_tokens = _end_tokens(self.model)

    def close(self) -> None:
        """Close all connections."""
        self._exchange.close()

    def describe(self) -> Dict[str, Any]:
        """Return what there is to say about the base station itself."""
        return {
            "model": self.folder.manifest["model"],
            "manifest": self.folder.digest,
            "dtype": self._dtype,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "now_s": self.clock.now_s(),
        }

    def ping(self) -> Dict[str, Any]:
        """Connect all devices, check them, and return their descriptions and clock offsets."""
        offsets = self._connect()
        return {
            "devices": {
                name: {
                    "offset_s": self.clock.unix_s(round(offset.offset_ns)),
                    "rtt_ms": offset.rtt_ns / 1e6,
                    "experts": len(self._devices.descriptions[name]["experts"]),
                    "parameters": self._devices.descriptions[name]["parameters"],
                    "pace": self._devices.descriptions[name].get("pace"),
                }
                for name, offset in offsets.items()
            }
        }

    def trial(self, spec: Spec, trial: str, progress: Progress, check: Callable[[], None]) -> Dict[str, Any]:
        """Run all prompts under a trial's policy and write the records.

        Args:
            spec: The run's specification.
            trial: The trial's name.
            progress: Told what is done.
            check: Called before every token; raises to stop.

        Returns:
            What the controller wants to know at once: times, counts, and the bytes of the control traffic.
        """
        if trial not in spec.trials:
            raise SpecError(f"the run has no trial {trial!r}")
        policy = spec.trials[trial]
        bandwidth = spec.bandwidth_of(policy)
        spec.policy(policy)  # wrong settings are said before anything is asked of the devices
        work = _Work(self, trial, spec.folder / trial)
        warmups = [spec.prompts[number % len(spec.prompts)] for number in range(spec.warmup_prompts)]
        prompts = [(Prompt(f"warmup-{i}-{p.id}", p.text), True) for i, p in enumerate(warmups)]
        prompts += [(prompt, False) for prompt in spec.prompts]
        with self._following(self._links), self._allocating(trial, bandwidth) as control:
            decider = self._decider(spec, policy, work)
            work.judge = Judge(decider, spec.policy(policy), self._dispatcher.devices)
            self._dispatcher.decider = decider
            if control is not None:
                control.begin(decider)
            for done, (prompt, warmup) in enumerate(prompts):
                progress(done, len(prompts), f"prompt {prompt.id}")
                self._answer(work, prompt, warmup, spec.max_new_tokens, check)
        progress(len(prompts), len(prompts), "records")
        allocated = control.summary() if control is not None else None
        return {"trial": trial, "policy": policy, **work.finish(), "bandwidth": allocated}

    def quality(
        self,
        spec: Spec,
        policy: str,
        scenario: Optional[str],
        progress: Progress,
        check: Callable[[], None],
    ) -> Dict[str, Any]:
        """Measure the quality of a policy and write the records.

        Args:
            spec: The run's specification.
            policy: The policy's name.
            scenario: The scenario whose links the policy sees; ``None`` where it does not look at them.
            progress: Told what is done.
            check: Called before every text; raises to stop.

        Returns:
            As for :meth:`trial`.
        """
        quality = spec.quality
        if quality is None or not (quality.texts or quality.choices):
            raise SpecError("the run asks for no quality pass")
        spec.policy(policy)
        if scenario is not None and scenario not in spec.scenarios:
            raise SpecError(
                f"the run has no links of a scenario {scenario!r}; it has {', '.join(spec.scenarios)}"
            )
        try:
            windows = read_windows(quality.texts, self._encode, quality.window_tokens, quality.windows)
            items = read_items(quality.choices, quality.choice_count)
            trial = quality_name(policy, scenario)
            work = _Work(self, trial, spec.folder / trial)
            virtual = None if scenario is None else self._virtual(spec.scenarios[scenario])
            decider = self._decider(spec, policy, work, spec.scenarios.get(scenario or ""), virtual)
            asked = QualityPass(policy, scenario, decider, virtual, quality.way)
            # Likelihoods do not depend on the real links: no bandwidth is allocated for them.
            with self._following(self._pacing):
                measure(
                    self.model,
                    self._encode,
                    self._dispatcher,
                    asked,
                    windows,
                    items,
                    self._references,
                    work.records.tables,
                    progress,
                    check,
                )
        except QualityError as error:
            raise StationError(str(error)) from error
        progress(1, 1, "records")
        return {"trial": trial, "policy": policy, "scenario": scenario, **work.finish()}

    def _encode(self, text: str) -> List[int]:
        tokens: List[int] = self._tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]
        return tokens

    def _virtual(self, scenario: ScenarioSpec) -> Optional[VirtualLinks]:
        """Return a scenario's links on a clock of tokens; ``None`` where nothing shapes them."""
        if scenario.channel is None:
            return None
        try:
            return VirtualLinks(read_channel(scenario.channel), self._dispatcher.devices)
        except ChannelError as error:
            raise StationError(str(error)) from error

    def _decider(
        self,
        spec: Spec,
        policy: str,
        work: _Work,
        scenario: Optional[ScenarioSpec] = None,
        virtual: Optional[VirtualLinks] = None,
    ) -> Decider:
        """Return a policy at work, on the links as they are, or on those of a scenario that are imagined."""
        dispatcher = self._dispatcher
        facts, links = UNSHAPED, None if virtual is None else virtual.at_block(0)
        rates = {}
        if dispatcher.feed is not None and scenario is None:
            assert self._links is not None
            facts, rates, links = link_facts(self._links), dispatcher.feed.rates, dispatcher.links()
        try:
            model = refined(spec.latency, dispatcher.devices, work.offsets, rates, facts)
        except LatencyError as error:
            raise SpecError(str(error)) from error
        delays = facts if scenario is None else LinkFacts(scenario.delay_ms, None)
        selection = spec.policy(policy)
        if not is_user_kind(selection["kind"]):
            selection = {"renormalise": self._family.renormalise, **selection}
        return decider_of(
            selection,
            spec.bandwidth_of(policy),
            model,
            dispatcher.device_of,
            links,
            delay_ms=delays.delays_ms(dispatcher.devices),
        )

    def _connect(self) -> Dict[str, Offset]:
        manifest = self.folder.manifest
        fleet = read_fleet(self._devices_file, manifest["layers"], manifest["experts_per_layer"])
        self._devices.prepare(fleet, self.folder.digest, self._dtype)
        self._dispatcher.place(fleet, self._devices.channels)
        return self._devices.offsets()

    @contextmanager
    def _following(self, links: Optional[Path]) -> Iterator[None]:
        """Follow the links, and let the sockets follow them too, until the end; then all is as before."""
        dispatcher = self._dispatcher
        with ExitStack() as stack:
            stack.callback(self._leave_links)
            if links is not None:
                dispatcher.feed = stack.enter_context(LinkFeed(links))
                if self._pacing is not None:
                    pacing = LinkPacing(dispatcher.feed, self._exchange, self._devices.channels)
                    dispatcher.pacing = stack.enter_context(pacing)
            yield

    @contextmanager
    def _allocating(self, trial: str, bandwidth: Mapping[str, Any]) -> Iterator[Optional[LinkControl]]:
        """Let the links follow the policy until the end, where it has a wish."""
        if bandwidth["kind"] == LEAVE_ALONE["kind"]:
            yield None
            return
        dispatcher = self._dispatcher
        if self._links is None or dispatcher.feed is None:
            text = "the policy allocates bandwidth, and this base station was started without --links"
            raise LinkControlError(f"{text}; only links that linkd shapes can be allocated")
        control = LinkControl(self._links, dispatcher.feed, str(bandwidth["kind"]), trial, dispatcher.devices)
        with control:
            dispatcher.control = control
            yield control

    def _leave_links(self) -> None:
        dispatcher = self._dispatcher
        dispatcher.decider = dispatcher.decided = None
        dispatcher.control = dispatcher.pacing = dispatcher.feed = None

    def _answer(
        self, work: _Work, prompt: Prompt, warmup: bool, max_new_tokens: int, check: Callable[[], None]
    ) -> None:
        most = int(self.model.config.max_position_embeddings) - max_new_tokens

        def encode() -> List[int]:
            tokens: List[int] = self._tokenizer(prompt.text)["input_ids"]
            if not 0 < len(tokens) <= most:
                wanted = f"expected 1 to {most} beside {max_new_tokens} new ones"
                raise StationError(f"prompt {prompt.id} has {len(tokens)} tokens; {wanted}")
            return tokens

        self._dispatcher.request = prompt.id
        decided: List[Decided] = []
        self._dispatcher.decided = decided
        generation = generate(self.model, encode, self._dispatcher, max_new_tokens, self._end_tokens, check)
        assert work.judge is not None
        for one, after in zip(decided, [*decided[1:], None]):
            work.judge.add(prompt.id, one, warmup, after)
        text = self._tokenizer.decode([token.token for token in generation.tokens], skip_special_tokens=True)
        work.records.add_generation(prompt.id, warmup, text, generation)


class _Work:
    """One trial or quality pass: connects and reads the clocks first, finishes with clocks and records."""

    def __init__(self, station: Station, trial: str, folder: Path) -> None:
        self.records = Records(trial, station.clock)
        self._station = station
        self._folder = folder
        self._traffic = station._devices.traffic()
        self._resent = station._devices.resent()
        self.offsets = station._connect()
        self._dispatcher = station._dispatcher
        self._dispatcher.rows = []
        self.judge: Optional[Judge] = None
        self._start_ns = time.monotonic_ns()

    def finish(self) -> Dict[str, Any]:
        """Read the clocks again, write the records, and return the summary."""
        end_ns = time.monotonic_ns()
        station, rows = self._station, self._dispatcher.rows
        after = station._devices.offsets()
        tracks = {name: OffsetTrack(self.offsets[name], after[name]) for name in after}
        self.records.add_clocks(self.offsets)
        self.records.add_clocks(after)
        self.records.add_dispatches(rows, tracks)
        if self.judge is not None:
            self.records.add_selection(self.judge.tally)
            if self.judge.bounds is not None:
                self.records.add_bounds(self.judge.bounds)
        self.records.write(self._folder)
        control = {}
        for channel, (out, back) in station._devices.traffic().items():
            out_before, back_before = self._traffic.get(channel, (0, 0))
            mine = [row for row in rows if row.device == channel.name]
            control[channel.name] = {
                "out": out - out_before - sum(row.bytes_out for row in mine),
                "back": back - back_before - sum(row.bytes_back for row in mine),
            }
        resent = {}
        for channel, counts in station._devices.resent().items():
            before = self._resent.get(channel, (0, 0))
            resent[channel.name] = dict(zip(("out", "back"), map(_minus, counts, before)))
        return {
            "records": str(self._folder),
            "t_start_s": station.clock.unix_s(self._start_ns),
            "t_end_s": station.clock.unix_s(end_ns),
            "rows": {name: len(entries) for name, entries in self.records.tables.items()},
            "control_bytes": control,
            "retransmitted_bytes": resent,
            "paced_late": {name: sum(r.late for r in rows if r.device == name) for name in after},
        }


def _minus(after: Optional[int], before: Optional[int]) -> Optional[int]:
    return None if after is None or before is None else after - before


def _end_tokens(model: Any) -> List[int]:
    value = model.generation_config.eos_token_id
    if value is None:
        return []
    return [int(token) for token in value] if isinstance(value, (list, tuple)) else [int(value)]
