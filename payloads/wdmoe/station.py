"""What the base station does: trials and quality passes over the model and the devices."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from payloads.wdmoe.bandwidth import LEAVE_ALONE
from payloads.wdmoe.families import FAMILIES
from payloads.wdmoe.fleet import Devices, read_fleet
from payloads.wdmoe.generate import generate, text_nll, windows_of
from payloads.wdmoe.links import LinkControl, LinkControlError
from payloads.wdmoe.pacing import LinkPacing
from payloads.wdmoe.records import Records
from payloads.wdmoe.remote import Dispatcher, load_model
from payloads.wdmoe.spec import Prompt, QualitySpec, Spec, SpecError
from payloads.wire.client import Exchange
from payloads.wire.clock import BSClock, Offset, OffsetTrack

__all__ = ["Station", "StationError", "lay_out_model"]

#: Called with what is done, of how many, and what comes now.
Progress = Callable[[int, int, str], None]


class StationError(Exception):
    """The model, a prompt or a text cannot be used."""


class ModelFolder(NamedTuple):
    """The base station's part of a model, as transformers reads it.

    Attributes:
        path: The folder.
        manifest: The manifest.
        digest: The manifest's sha256.
    """

    path: Path
    manifest: Mapping[str, Any]
    digest: str


def lay_out_model(manifest_path: Path) -> ModelFolder:
    """Make a folder of links to the objects of the base station's part, beside the manifest.

    Raises:
        StationError: The manifest cannot be read, or an object is missing.
    """
    try:
        data = manifest_path.read_bytes()
        manifest = json.loads(data.decode())
        entries = [(str(e["name"]), str(e["object"]), int(e["bytes"])) for e in manifest["base_station"]]
        family = str(manifest["family"])
    except OSError as error:
        raise StationError(f"cannot read the manifest {manifest_path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StationError(f"the manifest {manifest_path} is damaged: {error!r}") from error
    if family not in FAMILIES:
        raise StationError(f"the family {family} is not known; known: {', '.join(FAMILIES)}")
    digest = hashlib.sha256(data).hexdigest()
    home = manifest_path.resolve().parent
    folder = home / "models" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for name, sha256, size in entries:
        target = home / "objects" / sha256
        if not target.is_file() or target.stat().st_size != size:
            raise StationError(f"the object of {name} is missing or not whole: {target}; deploy again")
        link = folder / Path(name).name
        if not (link.is_symlink() and link.resolve() == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    return ModelFolder(folder, manifest, digest)


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
        links: linkd's socket, for policies that allocate bandwidth and for pacing.
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
        family = FAMILIES[folder.manifest["family"]]
        self.model = load_model(folder.path, family, dtype, self._dispatcher)
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
        settings, bandwidth = spec.policy(policy), spec.bandwidth_of(policy)
        work = _Work(self, trial, settings, spec.folder / trial)
        warmups = [spec.prompts[number % len(spec.prompts)] for number in range(spec.warmup_prompts)]
        prompts = [(Prompt(f"warmup-{i}-{p.id}", p.text), True) for i, p in enumerate(warmups)]
        prompts += [(prompt, False) for prompt in spec.prompts]
        with self._shaped(trial, bandwidth) as control:
            for done, (prompt, warmup) in enumerate(prompts):
                progress(done, len(prompts), f"prompt {prompt.id}")
                self._answer(work, prompt, warmup, spec.max_new_tokens, check)
        progress(len(prompts), len(prompts), "records")
        allocated = control.summary() if control is not None else None
        return {"trial": trial, "policy": policy, **work.finish(), "bandwidth": allocated}

    def quality(
        self, spec: Spec, policy: str, progress: Progress, check: Callable[[], None]
    ) -> Dict[str, Any]:
        """Measure the likelihood of held-out text under a policy and write the records.

        Args and result are as for :meth:`trial`.
        """
        if spec.quality is None or not spec.quality.texts:
            raise SpecError("the run asks for no quality pass")
        settings = spec.policy(policy)
        windows = self._windows(spec.quality)
        trial = f"quality-{policy}"
        work = _Work(self, trial, settings, spec.folder / trial)
        # Likelihoods do not depend on the links: no bandwidth is allocated for them.
        with self._shaped(trial, LEAVE_ALONE):
            for done, (name, number, tokens) in enumerate(windows):
                progress(done, len(windows), f"text {name}, window {number}")
                check()
                self._dispatcher.request, self._dispatcher.step = f"{name}-{number}", 0
                nll_sum = text_nll(self.model, tokens)
                work.records.add_quality(policy, name, number, len(tokens) - 1, nll_sum)
        progress(len(windows), len(windows), "records")
        return {"trial": trial, "policy": policy, **work.finish()}

    def _connect(self) -> Dict[str, Offset]:
        manifest = self.folder.manifest
        fleet = read_fleet(self._devices_file, manifest["layers"], manifest["experts_per_layer"])
        self._devices.prepare(fleet, self.folder.digest, self._dtype)
        self._dispatcher.place(fleet, self._devices.channels)
        return self._devices.offsets()

    @contextmanager
    def _shaped(self, trial: str, bandwidth: Mapping[str, Any]) -> Iterator[Optional[LinkControl]]:
        """Let the sockets follow the links, and the links the policy, until the end; then all is as before."""
        dispatcher = self._dispatcher
        with ExitStack() as stack:
            stack.callback(self._leave_links)
            if self._pacing is not None:
                pacing = LinkPacing(self._pacing, self._exchange, self._devices.channels)
                dispatcher.pacing = stack.enter_context(pacing)
            if bandwidth["kind"] != LEAVE_ALONE["kind"]:
                if self._links is None:
                    text = "the policy allocates bandwidth, and this base station was started without --links"
                    raise LinkControlError(f"{text}; only links that linkd shapes can be allocated")
                control = LinkControl(self._links, bandwidth, trial, dispatcher.devices)
                dispatcher.control = stack.enter_context(control)
            yield dispatcher.control

    def _leave_links(self) -> None:
        self._dispatcher.control = self._dispatcher.pacing = None

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
        generation = generate(self.model, encode, self._dispatcher, max_new_tokens, self._end_tokens, check)
        text = self._tokenizer.decode([token.token for token in generation.tokens], skip_special_tokens=True)
        work.records.add_generation(prompt.id, warmup, text, generation)

    def _windows(self, quality: QualitySpec) -> List[Tuple[str, int, List[int]]]:
        result = []
        for name, path in quality.texts:
            try:
                text = path.read_text()
            except OSError as error:
                raise StationError(f"cannot read the text {path}: {error.strerror}") from error
            tokens = self._tokenizer(text, verbose=False)["input_ids"]
            try:
                windows = windows_of(tokens, quality.window_tokens, quality.windows)
            except ValueError as error:
                raise StationError(f"text {name}: {error}") from error
            result += [(name, number, list(window)) for number, window in enumerate(windows)]
        return result


class _Work:
    """One trial or quality pass: connects and reads the clocks first, finishes with clocks and records."""

    def __init__(self, station: Station, trial: str, settings: Mapping[str, Any], folder: Path) -> None:
        self.records = Records(trial, station.clock)
        self._station = station
        self._folder = folder
        self._traffic = station._devices.traffic()
        self._resent = station._devices.resent()
        self._before = station._connect()
        self._dispatcher = station._dispatcher
        self._dispatcher.policy = settings
        self._dispatcher.rows = []
        self._start_ns = time.monotonic_ns()

    def finish(self) -> Dict[str, Any]:
        """Read the clocks again, write the records, and return the summary."""
        end_ns = time.monotonic_ns()
        station, rows = self._station, self._dispatcher.rows
        after = station._devices.offsets()
        tracks = {name: OffsetTrack(self._before[name], after[name]) for name in after}
        self.records.add_clocks(self._before)
        self.records.add_clocks(after)
        self.records.add_dispatches(rows, tracks)
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
