"""The campaign file of split experts: which model, prompts, policies and link scenarios make the trials of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from testbed.config.campaign_base import CampaignBase, Telemetry, Verify, check_campaign, doubled, parsed
from testbed.config.inventory import Inventory, no_device
from testbed.config.known_models import find_model, models_folder
from testbed.config.model import Count, FilePath, Model, Problem, Rate, ReadableFile, problems_error
from testbed.config.policy import Bandwidth, Latency, OnLoss, Policy, Selection, policy_kinds
from testbed.config.scenario import LinkRates, Scenario
from testbed.config.shaping import unshared_problems
from testbed.config.sizes import length_problem, model_sizes, size_problems
from testbed.config.yaml import read_yaml
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


def _known_model(name: str, info: ValidationInfo) -> Path:
    """Return the folder of a model given by its name or by a path."""
    base = (info.context or {}).get("base") or Path()
    return find_model(name, base, broadcast=False, shipped=models_folder())


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
    if isinstance(value, Mapping):
        return "settings of a kind" if AutoPlacement.model_fields.keys() & value.keys() else "a table"
    return "settings of a kind" if isinstance(value, AutoPlacement) else "a word"


class Campaign(CampaignBase):
    """A campaign of split experts: every policy in every scenario, several times."""

    workload: Literal["split-experts"] = "split-experts"
    """What runs on the lab: experts of one model split among the devices, `split-experts`, or `broadcast`."""
    model: Annotated[Path, AfterValidator(lambda path, info: _known_model(str(path), info))]
    """The name of a model that comes with testbed or was built by its scripts, or the path of a model's folder."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """The number format that the model runs in."""
    experts: Literal["int8"] | None = None
    """`int8`: the experts' weights are held in 8 bits with a scale for each channel; as in the checkpoint where left
    out."""
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            *doubled("policies", [policy.name for policy in self.policies]),
            *self._selection_problems(),
            *self._bandwidth_problems(),
            *self._loss_problems(),
            *self._length_problems(),
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

    def _length_problems(self) -> Iterator[Problem]:
        """Yield lengths that the base station would refuse every request or window for."""
        sizes = model_sizes(self.model)
        cut = self.prompts.prefill_chunk_tokens is not None
        shared = cut or any(scenario.concurrency > 1 for scenario in self.scenarios)
        wrong = length_problem(self.prompts.max_new_tokens, sizes, shared=shared)
        if wrong:
            yield Problem(("prompts", "max_new_tokens"), wrong)
        wanted = self.quality.window_tokens if self.quality is not None else 0
        if sizes.positions is not None and wanted > sizes.positions:
            text = f"at most {sizes.positions} was expected (what the model reads), not {wanted}"
            yield Problem(("quality", "window_tokens"), text)

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

    @property
    def compared_are(self) -> str:
        """What is compared, in the plural."""
        return "policies"

    @property
    def compared(self) -> tuple[tuple[str, ...], ...]:
        """The names of the policies: they run interleaved."""
        return (tuple(policy.name for policy in self.policies),)

    def lab_problems(self, inventory: Inventory) -> Iterator[Problem]:
        """Yield what the campaign asks for and a lab has not or cannot give."""
        yield from super().lab_problems(inventory)
        bands = [(n, policy.bandwidth) for n, policy in enumerate(self.policies) if policy.bandwidth]
        asked = [("policies", n, "bandwidth") for n, bandwidth in bands if bandwidth.kind != "scenario"]
        yield from unshared_problems(asked, inventory.network.shaping)
        yield from _placement_problems(self, inventory)

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


def load_campaign(path: Path) -> Campaign:
    """Read a campaign file of split experts; :mod:`testbed.config.workloads` reads those of any workload.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be read, holds a mistake (one line for each), or is about another workload.
    """
    document = read_yaml(path)
    given = document.data.get("workload") if isinstance(document.data, Mapping) else None
    if given == "broadcast":
        text = "split experts were expected: a broadcast has no experts, policies or prompts"
        raise InputError(document.problem(("workload",), text))
    return parsed(document, Campaign)


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
