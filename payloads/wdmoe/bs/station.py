"""What the base station does: trials and quality passes over the model and the devices."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Type

from payloads.linkd.channel import ChannelError, read_channel
from payloads.station.devices import Devices
from payloads.station.link_state import VirtualLinks
from payloads.station.specs import SpecError
from payloads.wdmoe.bs.asks import Ask
from payloads.wdmoe.bs.at_work import AtWork, Undertaking
from payloads.wdmoe.bs.engine import Engine
from payloads.wdmoe.bs.fleet import mismatch, read_fleet
from payloads.wdmoe.bs.heldout import QualityError
from payloads.wdmoe.bs.kv_cache import BatchingError
from payloads.wdmoe.bs.link_facts import UNSHAPED, LinkFacts, link_facts, refined
from payloads.wdmoe.bs.losses import bearing
from payloads.wdmoe.bs.metrics import StationMetrics
from payloads.wdmoe.bs.model_folder import ModelFolder, StationError, lay_out_model
from payloads.wdmoe.bs.quality import QualityPass, References, measure, read_items, read_windows
from payloads.wdmoe.bs.recording import ClosedLoop, Judging
from payloads.wdmoe.bs.remote import Dispatcher
from payloads.wdmoe.bs.remote_model import load_model
from payloads.wdmoe.bs.sampling import end_tokens
from payloads.wdmoe.bs.serving import explained, serve, through_api
from payloads.wdmoe.bs.spec import Prompt, ScenarioSpec, Spec, quality_name
from payloads.wdmoe.bs.station_links import StationLinks
from payloads.wdmoe.decision import Decider, decider_of
from payloads.wdmoe.families import FAMILIES
from payloads.wdmoe.judge import Judge
from payloads.wdmoe.latency import LatencyError
from payloads.wdmoe.serve.api import Api
from payloads.wdmoe.serve.language import Language
from payloads.wdmoe.user_policy import is_user_kind
from payloads.wire.client import DeviceError, DeviceLateError, Exchange
from payloads.wire.clock import BSClock, Offset
from payloads.wire.credentials import Credentials

__all__ = ["AtWork", "Station", "StationError", "lay_out_model"]

#: Called with what is done, of how many, and what comes now.
Progress = Callable[[int, int, str], None]


class Station:
    """The model, the devices, and what is done with them.

    Attributes:
        model: The model, without experts.
        clock: The base station's clock.
        folder: Where the model was loaded from.
        metrics: What it counts.

    Args:
        folder: Where to load the model from.
        devices_file: Devices and placement; read at each trial.
        credentials: What this end of the data plane proves itself with.
        dtype: The run's element type.
        links: linkd's socket, where it shapes the links.
        pacing: Whether the devices' sockets are to be kept at the rates that linkd tells.
    """

    def __init__(
        self,
        folder: ModelFolder,
        devices_file: Path,
        credentials: Credentials,
        dtype: str,
        links: Optional[Path] = None,
        pacing: bool = False,
    ) -> None:
        from transformers import AutoTokenizer

        self.folder = folder
        self.clock = BSClock()
        self._dtype = dtype
        self._devices_file = devices_file
        self._exchange = Exchange()
        self._dispatcher = Dispatcher(self._exchange)
        self.metrics = StationMetrics()
        self._dispatcher.booking.metrics = self.metrics
        self._dispatcher.losses.heard = self.metrics.event
        self._devices = Devices(self._exchange, credentials)
        self._links = StationLinks(self._dispatcher, self._exchange, self._devices, links, pacing)
        self._references = References()
        self._family = FAMILIES[folder.manifest["family"]]
        self.model = load_model(folder.path, self._family, dtype, self._dispatcher)
        self._renormalise = self._family.renormalise(self.model.config.to_dict())
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder.path), local_files_only=True)
        self._end_tokens = end_tokens(self.model)
        self._language: Optional[Language] = None

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
        policy, concurrency = spec.trials[trial]
        warmups = [spec.prompts[number % len(spec.prompts)] for number in range(spec.warmup_prompts)]
        warmups = [Prompt(f"warmup-{i}-{p.id}", p.text) for i, p in enumerate(warmups)]
        of = len(warmups) + len(spec.prompts)

        def asked(request: str, done: int) -> None:
            progress(done, of, f"prompt {request}")

        # Where a request's own time is up while a device is waited for, it ends so, and the trial goes on.
        survives = () if spec.serving.request_deadline_s is None else (DeviceLateError,)
        language = self.language() if spec.serving.through == "api" else None  # made before anything is timed
        with self.at_work(spec, trial, policy, concurrency, survives) as at:
            if language is not None:
                rounds = (warmups, list(spec.prompts))
                throughput = through_api(language, self._decode, at, spec, rounds, concurrency, asked, check)
            else:
                loop = ClosedLoop(at.engine, at.work.records, self._decode, at.judging, concurrency, asked)
                loop.run([self._ask(prompt, spec) for prompt in warmups], True, check)
                throughput = loop.run([self._ask(prompt, spec) for prompt in spec.prompts], False, check)
        progress(of, of, "records")
        return {
            "trial": trial,
            "policy": policy,
            **at.finish(),
            "output_tokens": throughput.output_tokens,
            "output_tokens_per_s": throughput.tokens_per_s,
        }

    def serve(
        self,
        spec: Spec,
        policy: str,
        trial: str,
        concurrency: int,
        api: Api,
        over: Callable[[], bool],
        tell: Callable[[int], None],
        context_tokens: Optional[int] = None,
    ) -> Dict[str, Any]:
        """Answer requests of the API under a policy, and write the records.

        A device that is lost fails the requests that need it, where the policy has nothing better, and not the service;
        so do memory that cannot be had and the requests of that pass.
        What ends the service, such as links that nobody knows any more, leaves its records in the folder of failures.

        Args:
            spec: The run's specification.
            policy: The policy's name.
            trial: The name that it has in the records.
            concurrency: How many requests are answered at once.
            api: The API.
            over: Whether it is to end.
            tell: Told now and then how many requests were taken.
            context_tokens: The most tokens of a request; ``None`` for as many as the model reads.

        Returns:
            As for :meth:`trial`.
        """
        survives = (DeviceError, MemoryError)
        with self.at_work(spec, trial, policy, concurrency, survives, context_tokens, keep=True) as at:
            served = serve(api, self._decode, at, spec.serving.request_deadline_s, over, tell)
        return {"trial": trial, "policy": policy, **explained(at.finish(), served)}

    def language(self) -> Language:
        """Return the model's tokenizer for the threads of the API, made when it is first asked for."""
        if self._language is None:
            config = self.model.config
            self._language = Language(
                self.folder.path,
                self.folder.manifest["model"],
                int(config.vocab_size),
                int(config.max_position_embeddings),
                self._end_tokens,
            )
        return self._language

    @contextmanager
    def at_work(
        self,
        spec: Spec,
        trial: str,
        policy: str,
        concurrency: int,
        survives: Tuple[Type[Exception], ...] = (),
        context_tokens: Optional[int] = None,
        *,
        keep: bool = False,
    ) -> Iterator[AtWork]:
        """Have a policy at work: the devices connected, the links followed and shared, the engine ready.

        Args:
            spec: The run's specification.
            trial: The name of what is done, in the records.
            policy: The policy's name.
            concurrency: How many requests are answered at once.
            survives: Failures that end the requests of their iteration only.
            context_tokens: The most tokens of a request; ``None`` for as many as the model reads.
            keep: Whether the records are kept if it fails: what was answered until then was answered.
        """
        bandwidth, loss = spec.bandwidth_of(policy), spec.loss_of(policy)
        spec.policy(policy)  # wrong settings are said before anything is asked of the devices
        engine = self._engine(spec, policy, concurrency, survives, context_tokens)
        work = self._undertaking(trial, spec.folder / trial)
        losses = self._dispatcher.losses
        renormalise = spec.policy(policy).get("renormalise", self._renormalise)
        with ExitStack() as stack:
            stack.enter_context(work.failing(whole=keep))
            self.metrics.follow(lambda: engine.load)
            stack.callback(self.metrics.follow, lambda: (0, 0))
            stack.enter_context(bearing(losses, self._devices, loss, renormalise))
            stack.enter_context(self._links.following(self._links.path))
            control = stack.enter_context(self._links.allocating(trial, bandwidth))
            decider = self._decider(spec, policy, work)
            self._dispatcher.expects = lambda loads, links: decider.costs(links).dispatch_s(loads)
            work.judge = Judge(decider, spec.policy(policy), self._dispatcher.devices)
            self._dispatcher.decider = decider
            self._dispatcher.activations = decider.model.activations
            if control is not None:
                control.begin(decider)
            yield AtWork(engine, work, Judging(work.judge, self._dispatcher), self._dispatcher, control)

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
            work = self._undertaking(trial, spec.folder / trial)
            virtual = None if scenario is None else self._virtual(spec.scenarios[scenario])
            decider = self._decider(spec, policy, work, spec.scenarios.get(scenario or ""), virtual)
            asked = QualityPass(policy, scenario, decider, virtual, quality.way)
            # Likelihoods do not depend on the real links: no bandwidth is allocated for them.
            with self._links.following(self._links.paced):
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
        work: Undertaking,
        scenario: Optional[ScenarioSpec] = None,
        virtual: Optional[VirtualLinks] = None,
    ) -> Decider:
        """Return a policy at work, on the links as they are, or on those of a scenario that are imagined."""
        dispatcher = self._dispatcher
        facts, links = UNSHAPED, None if virtual is None else virtual.at_block(0)
        rates = {}
        if dispatcher.feed is not None and scenario is None:
            assert self._links.path is not None
            facts, rates, links = link_facts(self._links.path), dispatcher.feed.rates, dispatcher.links()
        try:
            latency = spec.latency.with_activations(spec.activations.get(policy))
            model = refined(latency, dispatcher.devices, work.offsets, rates, facts)
        except LatencyError as error:
            raise SpecError(str(error)) from error
        delays = facts if scenario is None else LinkFacts(scenario.delay_ms, None)
        selection = spec.policy(policy)
        if not is_user_kind(selection["kind"]):
            selection = {"renormalise": self._renormalise, **selection}
        return decider_of(
            selection,
            spec.bandwidth_of(policy),
            model,
            dispatcher.device_of,
            links,
            delay_ms=delays.delays_ms(dispatcher.devices),
        )

    def _undertaking(self, trial: str, folder: Path) -> Undertaking:
        return Undertaking(trial, folder, self.clock, self._devices, self._dispatcher, self._connect)

    def _connect(self) -> Dict[str, Offset]:
        manifest = self.folder.manifest
        fleet = read_fleet(self._devices_file, manifest["layers"], manifest["experts_per_layer"])
        self._devices.prepare(fleet.devices, partial(mismatch, fleet, self.folder.digest, self._dtype))
        self._dispatcher.place(fleet, self._devices.channels)
        return self._devices.offsets()

    def _engine(
        self,
        spec: Spec,
        policy: str,
        concurrency: int,
        survives: Tuple[Type[Exception], ...],
        context_tokens: Optional[int],
    ) -> Engine:
        try:
            return Engine(
                self.model,
                self._dispatcher,
                max_batch=concurrency,
                prefill_chunk_tokens=spec.serving.prefill_chunk_tokens,
                survives=survives,
                activations=spec.activations.get(policy),
                context_tokens=context_tokens,
            )
        except BatchingError as error:
            raise StationError(str(error)) from error

    def _ask(self, prompt: Prompt, spec: Spec) -> Ask:
        """Return what is asked of the engine for a prompt: greedy answers, up to the end of the text."""

        def encode() -> List[int]:
            tokens: List[int] = self._tokenizer(prompt.text, verbose=False)["input_ids"]
            return tokens

        return Ask(
            prompt.id,
            encode,
            spec.max_new_tokens,
            stop_tokens=self._end_tokens,
            deadline_s=spec.serving.request_deadline_s,
        )

    def _decode(self, tokens: List[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text
