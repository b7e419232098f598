"""What a campaign file says of policies: expert selection, bandwidth allocation, and the latency model they go by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo

from testbed.config.model import Model, Name, ReadableFile

__all__ = ["Bandwidth", "Latency", "Policy", "Selection", "policy_kinds"]


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


class Policy(Model):
    """One policy that the campaign compares."""

    name: Name
    """The policy's name in the records."""
    selection: Selection
    """How the experts of a token are chosen."""
    bandwidth: Bandwidth | None = None
    """How the band is shared among the devices; as the scenario has it where this is left out."""


class Latency(Model):
    """What the policies and the records expect dispatches to take: the latency model."""

    calibration: ReadableFile | None = None
    """A file that `testbed calibrate` made; speeds as the inventory and the boards' data sheets say where left out."""
    terms: Annotated[tuple[str, ...], AfterValidator(_known_terms)] | None = None
    """What the model counts beside the papers' compute and transmission; all where it is left out: `round-trip`,
    `framing`, `memory`, `base-station`."""
