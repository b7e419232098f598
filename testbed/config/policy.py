"""What a campaign file says of policies: expert selection, bandwidth allocation, and the latency model they go by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo

from testbed.config.model import Model, Name, Rate, ReadableFile

__all__ = ["Activations", "Bandwidth", "Latency", "OnLoss", "Policy", "Selection", "policy_kinds"]

Activations = Literal["bfloat16", "float16", "float32", "int8"]
"""How rows of hidden state can be written for the links."""


def policy_kinds() -> tuple[str, ...]:
    """Return the kinds of expert selection that the base station knows."""
    from payloads.wdmoe.gating import SELECTOR_KINDS

    return tuple(SELECTOR_KINDS)


def _known_kind(kind: str, info: ValidationInfo) -> str:
    """Return a kind of selection as the base station knows it; a file starts at the folder of the campaign."""
    from payloads.wdmoe.user_policy import UserPolicyError
    from testbed.policies.resolve import resolve_kind

    base = (info.context or {}).get("base") or Path()
    try:
        return resolve_kind(kind, base)
    except UserPolicyError as error:
        raise ValueError(str(error)) from None


def _known_terms(terms: tuple[str, ...]) -> tuple[str, ...]:
    from payloads.wdmoe.latency import TERMS

    for name in terms:
        if name not in TERMS:
            raise ValueError(f"{', '.join(TERMS)} were expected, not {name!r}")
    return terms


class Selection(Model):
    """How the experts of a token are chosen: the kind, and the settings of that kind."""

    model_config = ConfigDict(extra="allow")

    kind: Annotated[str, AfterValidator(_known_kind)]
    """The kind of selection, such as `top_k` or `budget`, or `FILE:CLASS` for one of your own; docs/policies.md has
    the kinds and their settings."""
    k: Any = None
    """How many experts each token keeps (kind `top_k`)."""

    def settings(self) -> dict[str, Any]:
        """Return the kind and its settings, as the base station is told them."""
        return self.model_dump(exclude_none=True)


class Bandwidth(Model):
    """How the band is shared among the devices while a trial runs."""

    kind: Annotated[Any, Field(json_schema_extra={"expected": "a kind of allocation, such as `uniform`"})]
    """`scenario` (the links are left as the scenario has them), `uniform`, `proportional` (to the bytes sent), or
    `minmax` (so that the last device is done as early as can be)."""
    per: Any = None
    """How often it is shared anew: `layer`, `token` or `trial` (kinds `proportional` and `minmax`; default `layer`)."""
    floor: Any = None
    """The share that every device keeps (kinds `proportional` and `minmax`; default 0.01)."""
    directions: Any = None
    """`same` (one share for both directions, as WDMoE has it; the default) or `separate` (each band on its own; kind
    `minmax`)."""
    rounds: Any = None
    """How often selection and allocation are made in turn for one layer, at most (kind `minmax` per `layer`; default
    3)."""
    gain_ms: Any = None
    """By how many milliseconds earlier a layer must be done for the band to be shared anew (kind `minmax` per `layer`;
    default 0)."""

    def settings(self) -> dict[str, Any]:
        """Return the kind and its settings, as the base station is told them."""
        return self.model_dump(exclude_none=True)


class OnLoss(Model):
    """What becomes of a layer when a device is lost or late while it is asked."""

    kind: Literal["fail", "replica", "drop", "wait"]
    """`fail` (what is being answered fails), `replica` (another holder of the expert is asked), `drop` (the token keeps
    the experts that can be reached) or `wait` (for the device to come back)."""
    then: Literal["drop", "wait", "fail"] | None = None
    """What happens to an expert that no other device holds (kind `replica`; default `fail`)."""
    deadline_factor: Annotated[float, Field(strict=True, gt=1, le=1e6)] | None = None
    """A dispatch may take so many times what the latency model expects (default 10) ..."""
    deadline_floor_ms: Rate | None = None
    """... and so many milliseconds besides (default 500, and 20000 of kind `fail`); then its device is late."""
    wait_s: Rate | None = None
    """How long it is waited for, in seconds (where something waits; default 20)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield the keys that do not fit the kind, each with what is wrong."""
        if self.then is not None and self.kind != "replica":
            yield "then", f"only the kind `replica` has it, and this is `{self.kind}`"
        if self.wait_s is not None and "wait" not in (self.kind, self.then):
            yield "wait_s", "nothing waits here: neither `kind` nor `then` is `wait`"

    def settings(self) -> dict[str, Any]:
        """Return the kind and its settings, as the base station is told them."""
        return self.model_dump(exclude_none=True)


class Policy(Model):
    """One policy that the campaign compares."""

    name: Name
    """The policy's name in the records."""
    selection: Selection
    """How the experts of a token are chosen."""
    bandwidth: Bandwidth | None = None
    """How the band is shared among the devices; as the scenario has it where this is left out."""
    on_loss: OnLoss | None = None
    """What becomes of a layer when a device is lost or late; the trial fails where this is left out."""
    activations: Activations | None = None
    """How rows of hidden state cross the links, both ways: `bfloat16`, `float16`, `float32` or `int8` (with a scale for
    each row); as they are computed where this is left out."""


class Latency(Model):
    """What the policies and the records expect dispatches to take: the latency model."""

    calibration: ReadableFile | None = None
    """A file that `testbed calibrate` made; speeds as the inventory and the boards' data sheets say where left out."""
    terms: Annotated[tuple[str, ...], AfterValidator(_known_terms)] | None = None
    """What the model counts beside the papers' compute and transmission; all where it is left out: `round-trip`,
    `framing`, `memory`, `base-station`."""
