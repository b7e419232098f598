"""The campaign file: which model, prompts, policies and link scenarios make the trials of a run."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, PrivateAttr, Tag, ValidationInfo, model_validator

from testbed.config.folders import built_models_folder
from testbed.config.inventory import Inventory, no_device
from testbed.config.model import (
    Count,
    FilePath,
    Model,
    Name,
    Problem,
    Rate,
    ReadableFile,
    problems_error,
    validate,
)
from testbed.config.policy import Bandwidth, Latency, OnLoss, Policy, Selection, policy_kinds
from testbed.config.scenario import LinkRates, Scenario
from testbed.config.shaping import shaping_problems
from testbed.config.sizes import model_sizes, size_problems
from testbed.config.yaml import Document, Place, read_yaml
from testbed.errors import InputError

__all__ = [
    "AutoPlacement",
    "Bandwidth",
    "Campaign",
    "Latency",
    "LinkRates",
    "OnLoss",
    "Policy",
    "Prompts",
    "Quality",
    "Scenario",
    "Selection",
    "Telemetry",
    "Verify",
    "check_campaign",
    "load_campaign",
    "models_folder",
    "policy_kinds",
]


#: Models that are too large to come with testbed, and what builds them.
BUILT_MODELS = {"smollm2-moe": "scripts/build_smollm2_moe.py"}


def models_folder() -> Path:
    """Return the folder of the models that come with testbed."""
    import payloads

    return Path(payloads.__path__[0]) / "models"


def _known_model(name: str, info: ValidationInfo) -> Path:
    """Return the folder of a model given by its name or by a path."""
    shipped, built = models_folder(), built_models_folder()
    base = (info.context or {}).get("base") or Path()
    for folder in (shipped / name, built / name, base / Path(name).expanduser()):
        if (folder / "config.json").is_file():
            _check_config(folder / "config.json")
            return folder.resolve()
    if name in BUILT_MODELS:
        raise ValueError(f"{name} is not built yet; build it with {BUILT_MODELS[name]} (into {built / name})")
    names = sorted({path.parent.name for root in (shipped, built) for path in root.glob("*/config.json")})
    close = difflib.get_close_matches(name, names, n=1)
    there = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names) or 'none'}"
    raise ValueError(f"no model of this name or path (a folder with config.json): {name!r}; {there}")


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a JSON object was expected")


class Prompts(Model):
    """What is asked, and how much is answered."""

    file: ReadableFile
    """A file of lines such as `{"id": "p1", "text": "..."}`."""
    count: Count | None = None
    """How many prompts are taken from the start of the file; all where it is left out."""
    max_new_tokens: Count = 24
    """How many tokens each answer has at most."""
    warmup: Annotated[int, Field(strict=True, ge=0)] = 1
    """How many prompts are answered before the first one that counts, in each trial."""
    prefill_chunk_tokens: Count | None = None
    """How many tokens of a prompt are read in one pass at most; all at once where it is left out."""
    request_deadline_s: Rate | None = None
    """How long a request may take, in seconds; what is there by then is its answer. No limit where it is left out."""
    through: Literal["engine", "api"] = "engine"
    """Who asks: the base station itself (`engine`), or a client of its HTTP interface (`api`)."""


class Quality(Model):
    """How the quality of a policy is measured: by held-out text, and by questions with answers to choose from."""

    texts: tuple[ReadableFile, ...] = ()
    """Text files that the model was not trained on."""
    windows: Count = 16
    """How many windows of each text are rated."""
    window_tokens: Annotated[int, Field(strict=True, ge=2)] = 256
    """How many tokens a window has."""
    way: Annotated[Literal["decode", "prompt"], Field(alias="as")] = "decode"
    """How a policy sees a text: `decode` (each token on its own, as those of an answer) or `prompt` (all at once)."""
    choices: tuple[ReadableFile, ...] = ()
    """Files of lines such as `{"id": "q1", "question": "...", "choices": ["...", "..."], "answer": 0}`."""
    choice_count: Count | None = None
    """How many questions of each file are asked, spread evenly over it; all where it is left out."""

    @model_validator(mode="after")
    def _readable_questions(self) -> Self:
        from payloads.wdmoe.bs.heldout import QualityError, read_items

        problems = []
        if not self.texts and not self.choices:
            problems.append(
                Problem(("quality",), "`texts` or `choices` was expected, with at least one file")
            )
        names = [file.stem for file in self.choices]
        for number, file in enumerate(self.choices):
            place = ("quality", "choices", number)
            if names.index(file.stem) < number:
                same = f"a second file called {file.stem}; give one of them another name"
                problems.append(Problem(place, same, see=("quality", "choices", names.index(file.stem))))
                continue
            try:
                read_items([(file.stem, file)], self.choice_count)
            except QualityError as error:
                problems.append(Problem(place, str(error)))
        if problems:
            raise problems_error(problems)
        return self


class Telemetry(Model):
    """How often each device is asked about itself."""

    power_hz: Annotated[float, Field(strict=True, gt=0, le=100)] = 20.0
    """Readings of the power rails a second."""
    jtop_hz: Annotated[float, Field(strict=True, gt=0, le=10)] = 2.0
    """Readings of jtop a second."""


class Verify(Model):
    """How the links are checked before a scenario."""

    message_bytes: Annotated[tuple[Count, ...], Field(min_length=1)] = (4096, 65536)
    """The sizes of the messages that are timed."""
    repeats: Count = 5
    """How many messages of each size."""
    tolerance: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.05
    """How far a time may be from the expected one, as a share of it."""


class AutoPlacement(Model):
    """Experts placed by memory, by speed and by how often the router asks for them."""

    kind: Literal["auto"]
    """`auto`."""
    frequency: FilePath | None = None
    """The folder of an earlier run of the model: what its router asked for. All experts alike where it is left out."""
    copies: Count = 1
    """How many devices hold each expert."""
    hot_copies: Annotated[int, Field(strict=True, ge=0)] = 0
    """How many further copies there are in each layer at most, of what loads the most loaded device."""


Placement = dict[str, dict[str, str | tuple[str, ...]]]


def _placement_form(value: object) -> str:
    if isinstance(value, AutoPlacement) or (isinstance(value, Mapping) and "kind" in value):
        return "settings of a kind"
    return "a table" if isinstance(value, Mapping) else "a word"


class Campaign(Model):
    """One campaign: every policy in every scenario, several times."""

    campaign: Name
    """The campaign's name; runs are named after it."""
    inventory: FilePath
    """The inventory of the lab, from the folder of this file."""
    model: Annotated[Path, AfterValidator(lambda path, info: _known_model(str(path), info))]
    """The name of a model that comes with testbed or was built by its scripts, or the path of a model's folder."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """The number format that the model runs in."""
    experts: Literal["int8"] | None = None
    """`int8`: the experts' weights are held in 8 bits with a scale for each channel; as in the checkpoint where left
    out."""
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    """What all random choices follow from."""
    repeats: Count = 1
    """How many times each policy runs in each scenario."""
    placement: Annotated[
        Annotated[Literal["auto"], Tag("a word")]
        | Annotated[AutoPlacement, Tag("settings of a kind")]
        | Annotated[Placement, Tag("a table")],
        Discriminator(_placement_form),
    ] = "auto"
    """Which devices hold which expert: `auto`, settings of the kind `auto`, or layer -> expert -> device(s)."""
    prompts: Prompts
    """What is asked."""
    quality: Quality | None = None
    """How quality is measured; not at all where it is left out."""
    policies: Annotated[tuple[Policy, ...], Field(min_length=1)]
    """The policies that are compared."""
    scenarios: Annotated[tuple[Scenario, ...], Field(min_length=1)]
    """The link scenarios that they are compared in."""
    latency: Latency = Latency()
    """The latency model that policies decide by and that `predicted_ms` comes from."""
    telemetry: Telemetry = Telemetry()
    """How often each device is asked about itself."""
    verify: Verify = Verify()
    """How the links are checked."""
    _document: Document | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            *_doubled("policies", [policy.name for policy in self.policies]),
            *_doubled("scenarios", [scenario.name for scenario in self.scenarios]),
            *self._selection_problems(),
            *self._bandwidth_problems(),
            *self._loss_problems(),
            *self._text_problems(),
            *self._scenario_problems(),
        ]
        if problems:
            raise problems_error(problems)
        return self

    def _selection_problems(self) -> Iterator[Problem]:
        from payloads.wdmoe.gating import check_selection

        sizes = model_sizes(self.model)
        for number, policy in enumerate(self.policies):
            settings = policy.selection.settings()
            place = ("policies", number, "selection")
            for line in check_selection(settings):
                name, _, text = line.partition(": ")
                yield Problem((*place, name), text.replace("got None", "and it is missing"))
            for name, text in size_problems(settings, sizes):
                yield Problem((*place, name), text)

    def _bandwidth_problems(self) -> Iterator[Problem]:
        from payloads.wdmoe.allocation.bandwidth import check_bandwidth

        for number, policy in enumerate(self.policies):
            for line in check_bandwidth(policy.bandwidth.settings()) if policy.bandwidth else ():
                name, _, text = line.partition(": ")
                yield Problem(("policies", number, "bandwidth", name), text)

    def _loss_problems(self) -> Iterator[Problem]:
        for number, policy in enumerate(self.policies):
            for name, text in policy.on_loss.problems() if policy.on_loss else ():
                yield Problem(("policies", number, "on_loss", name), text)

    def _text_problems(self) -> Iterator[Problem]:
        """Yield texts of one name, since the records tell them apart by it, and those that are too short."""
        if self.quality is None:
            return
        names = [text.stem for text in self.quality.texts]
        for number, text in enumerate(self.quality.texts):
            place = ("quality", "texts", number)
            first = names.index(text.stem)
            if first < number:
                same = f"a second text called {text.stem}; give one of the files another name"
                yield Problem(place, same, see=("quality", "texts", first))
            size, wanted = text.stat().st_size, self.quality.window_tokens
            if size < wanted:  # a token is a byte at least; the base station counts the tokens themselves
                yield Problem(place, f"{text} has {size} bytes, too few for one window of {wanted} tokens")

    def _scenario_problems(self) -> Iterator[Problem]:
        from testbed.links.channels.check import scenario_problems

        for number, scenario in enumerate(self.scenarios):
            for problem in scenario_problems(scenario):
                yield Problem(("scenarios", number, *problem.place), problem.text)

    @property
    def model_name(self) -> str:
        """The model's name: that of its folder."""
        return self.model.name

    def policy(self, name: str) -> Policy:
        """Return one policy by name."""
        return next(policy for policy in self.policies if policy.name == name)

    def scenario(self, name: str) -> Scenario:
        """Return one scenario by name."""
        return next(scenario for scenario in self.scenarios if scenario.name == name)

    def mistake(self, *problems: tuple[Place, str]) -> InputError:
        """Return the error that names places of the campaign file, each with what is wrong there."""
        document = self._document or Document(Path("campaign"), None, {}, "")
        lines = [document.problem(place, text) for place, text in problems]
        if len(lines) == 1:
            return InputError(lines[0])
        return InputError(f"{document.file}: {len(lines)} mistakes", problems=lines)

    @property
    def text(self) -> str:
        """The campaign file as it was read, or the campaign as JSON where there was none."""
        if self._document is None:
            return self.model_dump_json(indent=1)
        return self._document.text


def _doubled(key: str, names: Sequence[str]) -> Iterator[Problem]:
    for number, name in enumerate(names):
        first = names.index(name)
        if first < number:
            yield Problem((key, number, "name"), f"{name} is a name already", see=(key, first, "name"))


def load_campaign(path: Path) -> Campaign:
    """Read a campaign file.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be read or holds a mistake; one line for each.
    """
    document = read_yaml(path)
    campaign = validate(document, Campaign)
    campaign._document = document
    return campaign


def check_campaign(campaign: Campaign, inventory: Inventory) -> None:
    """Check what a campaign says about devices against the lab.

    Args:
        campaign: The campaign.
        inventory: The lab's inventory.

    Raises:
        InputError: The campaign names a device that the lab has not, leaves one without a link, or asks for links
            that the lab's shaping cannot give.
    """
    problems = [
        *_link_problems(campaign, inventory),
        *shaping_problems(campaign, inventory),
        *_placement_problems(campaign, inventory),
    ]
    problems = list(dict.fromkeys(problems))  # what is wrong with a default is so for several devices
    if problems:
        raise campaign.mistake(*((problem.place, problem.text) for problem in problems))


def _link_problems(campaign: Campaign, inventory: Inventory) -> Iterator[Problem]:
    from testbed.links.channels.check import lacking_devices, unknown_devices

    devices = [device.name for device in inventory.devices]
    for number, scenario in enumerate(campaign.scenarios):
        problems = [*unknown_devices(scenario, devices)]
        if inventory.network.shaping != "none":  # links that nobody shapes need no rates
            problems += lacking_devices(scenario, devices)
        for problem in problems:
            yield Problem(("scenarios", number, *problem.place), problem.text)


def _placement_problems(campaign: Campaign, inventory: Inventory) -> Iterator[Problem]:
    devices = [device.name for device in inventory.devices]
    if isinstance(campaign.placement, AutoPlacement) and campaign.placement.copies > len(devices):
        text = f"the lab has {len(devices)} devices to hold copies"
        yield Problem(("placement", "copies"), text)
    for layer, experts in campaign.placement.items() if isinstance(campaign.placement, dict) else ():
        for expert, holders in experts.items():
            for name in (holders,) if isinstance(holders, str) else holders:
                if name not in devices:
                    yield Problem(("placement", layer, expert), no_device(name, devices))
