"""The run's specification, as the controller writes it for the base station."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from payloads.station.specs import SpecError, name_of
from payloads.wdmoe.allocation.bandwidth import LEAVE_ALONE, check_bandwidth
from payloads.wdmoe.bs.heldout import WAYS
from payloads.wdmoe.bs.loss import LossPolicy, check_loss
from payloads.wdmoe.gating import check_selection
from payloads.wdmoe.latency import LatencyError, LatencyModel
from payloads.wire.frames import DTYPE_CODES

__all__ = [
    "WAYS_IN",
    "Prompt",
    "QualitySpec",
    "ScenarioSpec",
    "ServingSpec",
    "Spec",
    "TrialSpec",
    "quality_name",
    "read_spec",
]

#: How a trial's prompts reach the engine: submitted to it, or posted by a client to the API.
WAYS_IN = ("engine", "api")


class Prompt(NamedTuple):
    """A prompt.

    Attributes:
        id: Its name in the records.
        text: The text.
    """

    id: str
    text: str


class QualitySpec(NamedTuple):
    """What the quality passes measure.

    Attributes:
        window_tokens: Length of a window.
        windows: The most windows of a text.
        texts: Name and file of each text.
        way: How a policy sees a text, of :data:`payloads.wdmoe.bs.heldout.WAYS`.
        choices: Name and file of each set of questions.
        choice_count: How many of each set are asked; ``None`` for all.
    """

    window_tokens: int
    windows: int
    texts: Tuple[Tuple[str, Path], ...]
    way: str = WAYS[0]
    choices: Tuple[Tuple[str, Path], ...] = ()
    choice_count: Optional[int] = None


class ScenarioSpec(NamedTuple):
    """A scenario's links, for those who only imagine them.

    Attributes:
        channel: The file of the channel; ``None`` where nothing shapes the links.
        delay_ms: The one-way delay that each link has beside its rate, by device.
    """

    channel: Optional[Path]
    delay_ms: Mapping[str, float]


class TrialSpec(NamedTuple):
    """A trial.

    Attributes:
        policy: Its policy's name.
        concurrency: How many prompts are in flight.
    """

    policy: str
    concurrency: int = 1


class ServingSpec(NamedTuple):
    """How requests are answered.

    Attributes:
        prefill_chunk_tokens: The most tokens of a prompt in one pass through the model; ``None`` for all of them.
        request_deadline_s: The most time from a request's submission to its end; ``None`` for any.
        through: Who submits the prompts of a trial, of :data:`WAYS_IN`.
    """

    prefill_chunk_tokens: Optional[int] = None
    request_deadline_s: Optional[float] = None
    through: str = "engine"


class Spec(NamedTuple):
    """What a run does at the base station.

    Attributes:
        folder: The run's folder; records go below it.
        run: The run's name.
        max_new_tokens: The most tokens of an answer.
        warmup_prompts: How many of the prompts are first run once more, as a warm-up.
        prompts: The prompts.
        policies: Settings of each expert selection, by the policy's name.
        quality: What the quality passes measure, if there are any.
        trials: The trials, by name.
        bandwidth: Settings of the bandwidth allocation, by the policy's name; a policy that is not there leaves
            the links alone.
        latency: What dispatches are expected to take.
        scenarios: The links of each scenario that a quality pass follows.
        serving: How requests are answered.
        loss: Settings of what is done when a device is lost, by the policy's name; a policy that is not there fails.
        activations: Element type of the rows on the wire, by the policy's name; where none is given, that of the run.
    """

    folder: Path
    run: str
    max_new_tokens: int
    warmup_prompts: int
    prompts: Tuple[Prompt, ...]
    policies: Dict[str, Mapping[str, Any]]
    quality: Optional[QualitySpec]
    trials: Dict[str, TrialSpec]
    bandwidth: Dict[str, Mapping[str, Any]]
    latency: LatencyModel
    scenarios: Dict[str, ScenarioSpec]
    serving: ServingSpec = ServingSpec()
    loss: Mapping[str, Mapping[str, Any]] = {}
    activations: Mapping[str, str] = {}

    def policy(self, name: str) -> Mapping[str, Any]:
        """Return a policy's settings.

        Raises:
            SpecError: There is none of that name, or its settings are wrong.
        """
        if name not in self.policies:
            raise SpecError(f"the run has no policy {name!r}; it has {', '.join(self.policies)}")
        problems = check_selection(self.policies[name])
        if problems:
            raise SpecError(f"policy {name}: {problems[0]}")
        return self.policies[name]

    def loss_of(self, policy: str) -> LossPolicy:
        """Return what a policy does when a device is lost.

        Raises:
            SpecError: Its settings are wrong.
        """
        settings = self.loss.get(policy, {})
        problems = check_loss(settings)
        if problems:
            raise SpecError(f"policy {policy}: on_loss: {problems[0]}")
        return LossPolicy.of(settings)

    def bandwidth_of(self, policy: str) -> Mapping[str, Any]:
        """Return the settings of a policy's bandwidth allocation.

        Raises:
            SpecError: They are wrong.
        """
        settings = self.bandwidth.get(policy, LEAVE_ALONE)
        problems = check_bandwidth(settings)
        if problems:
            raise SpecError(f"policy {policy}: bandwidth: {problems[0]}")
        return settings


def read_spec(path: Path) -> Spec:
    """Read a specification.

    Raises:
        SpecError: It cannot be read or is wrong.
    """
    try:
        value = json.loads(path.read_text())
        spec = Spec(
            folder=path.parent,
            run=str(value["run"]),
            max_new_tokens=_count(value, "max_new_tokens", 1),
            warmup_prompts=_count(value, "warmup_prompts", 0),
            prompts=tuple(Prompt(str(p["id"]), str(p["text"])) for p in value["prompts"]),
            policies={name_of(name): dict(settings) for name, settings in value["policies"].items()},
            quality=_quality(value.get("quality")),
            trials={name_of(trial["trial"]): _trial(trial) for trial in value.get("trials", [])},
            bandwidth={
                name_of(name): dict(settings) for name, settings in value.get("bandwidth", {}).items()
            },
            latency=LatencyModel.from_json(value["latency"]),
            scenarios={name_of(name): _scenario(one) for name, one in value.get("scenarios", {}).items()},
            serving=_serving(value.get("serving", {})),
            loss={name_of(name): dict(settings) for name, settings in value.get("loss", {}).items()},
            activations=_activations(value.get("activations", {})),
        )
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise SpecError(f"{path}: {error.args[0]} is missing") from error
    except LatencyError as error:
        raise SpecError(f"{path}: latency: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SpecError(f"{path} is wrong: {error}") from error
    if not spec.prompts:
        raise SpecError(f"{path}: there is no prompt")
    return spec


def quality_name(policy: str, scenario: Optional[str]) -> str:
    """Return the name that a quality pass has beside those of trials.

    Names of policies and scenarios have no capitals, so that no two passes share one.

    Args:
        policy: The policy's name.
        scenario: The scenario whose links its selection follows; ``None`` where it does not look at them.
    """
    return f"quality-{policy}" if scenario is None else f"quality-{policy}-IN-{scenario}"


def _activations(value: Any) -> Dict[str, str]:
    for name, dtype in value.items():
        if dtype not in DTYPE_CODES:
            raise ValueError(
                f"activations of {name}: one of {', '.join(DTYPE_CODES)} was expected, not {dtype!r}"
            )
    return {name_of(name): dtype for name, dtype in value.items()}


def _quality(value: Any) -> Optional[QualitySpec]:
    if value is None:
        return None
    way = value.get("way", WAYS[0])
    if way not in WAYS:
        raise ValueError(f"way: expected one of {', '.join(WAYS)}, got {way!r}")
    return QualitySpec(
        _count(value, "window_tokens", 2),
        _count(value, "windows", 1),
        _files(value["texts"]),
        way,
        _files(value.get("choices", [])),
        None if value.get("choice_count") is None else _count(value, "choice_count", 1),
    )


def _files(value: Any) -> Tuple[Tuple[str, Path], ...]:
    return tuple((str(entry["name"]), Path(entry["path"]).expanduser()) for entry in value)


def _scenario(value: Any) -> ScenarioSpec:
    channel = value["channel"]
    delays = {str(name): float(delay_ms) for name, delay_ms in value.get("delay_ms", {}).items()}
    return ScenarioSpec(None if channel is None else Path(channel).expanduser(), delays)


def _trial(value: Mapping[str, Any]) -> TrialSpec:
    concurrency = 1 if value.get("concurrency") is None else _count(value, "concurrency", 1)
    return TrialSpec(str(value["policy"]), concurrency)


def _serving(value: Mapping[str, Any]) -> ServingSpec:
    chunk = None if value.get("prefill_chunk_tokens") is None else _count(value, "prefill_chunk_tokens", 1)
    deadline_s = value.get("request_deadline_s")
    if deadline_s is not None and (isinstance(deadline_s, bool) or not 0 < float(deadline_s) < float("inf")):
        raise ValueError(f"request_deadline_s: expected seconds above 0, got {deadline_s!r}")
    through = value.get("through", WAYS_IN[0])
    if through not in WAYS_IN:
        raise ValueError(f"through: expected one of {', '.join(WAYS_IN)}, got {through!r}")
    return ServingSpec(chunk, None if deadline_s is None else float(deadline_s), through)


def _count(value: Mapping[str, Any], key: str, least: int) -> int:
    number = value[key]
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ValueError(f"{key}: expected a whole number of at least {least}, got {number!r}")
    return number
