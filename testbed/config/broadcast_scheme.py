"""What a broadcast campaign compares: networks that learned to broadcast, and codecs with a code and a modulation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from testbed.config.known_models import find_model
from testbed.config.model import Model

__all__ = ["Kind", "Scheme", "SchemeName", "SnrDb"]

Kind = Literal["learned", "digital", "practical"]

SchemeName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9 .,_+()-]{0,46}[A-Za-z0-9.)])?$",
        json_schema_extra={"expected": "a short name of letters, digits, spaces and `.,_+()-`"},
    ),
]
SnrDb = Annotated[float, Field(strict=True, ge=-20, le=60)]
"""A mean signal-to-noise ratio in dB: from where next to nothing gets through to where next to nothing is lost."""

#: The settings that belong to some kinds only; codec and sharing have to be there in both.
_DIGITAL = ("codec", "sharing", "downscale", "outage", "rate_for_snr_db")


def _broadcast_model(name: str, info: ValidationInfo) -> Path:
    return find_model(name, (info.context or {}).get("base") or Path(), broadcast=True)


class Scheme(Model):
    """One scheme that the campaign compares."""

    name: SchemeName
    """The scheme's name in the records."""
    kind: Kind
    """`learned` (networks), `digital` (a codec, and an ideal code at the capacity of the channel) or `practical` (a
    codec, 5G's LDPC code and QAM)."""
    models: tuple[
        Annotated[Path, AfterValidator(lambda path, info: _broadcast_model(str(path), info))], ...
    ] = ()
    """Names or folders of models; several are the same scheme trained from several seeds (kind `learned`)."""
    ablates: SchemeName | None = None
    """The scheme that this one is without something."""
    codec: Literal["jpeg2000", "webp", "avif"] | None = None
    """What codes an image (kinds `digital` and `practical`)."""
    sharing: Literal["time_division", "superposition"] | None = None
    """How the users share the channel: in turn, or at once with parts of the power, where the stronger user decodes
    the weaker one's part and subtracts it (kinds `digital` and `practical`)."""
    downscale: Annotated[bool, Field(strict=True)] = True
    """Whether an image for which no file is small enough may be sent at a half or a quarter of its side (kinds
    `digital` and `practical`)."""
    outage: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.05
    """With a `csi_error`, how likely a gain may be worse than the rate is chosen for (kinds `digital` and
    `practical`)."""
    rate_for_snr_db: tuple[SnrDb, ...] | None = None
    """Mean SNRs, one a user, that the rate is chosen for whatever the channel is; that of each frame where it is left
    out (kinds `digital` and `practical`)."""
    block_errors: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.01
    """The share of blocks that may be lost where the rate is chosen (kind `practical`)."""

    def problems(self, users: int) -> Iterator[tuple[str, str]]:
        """Yield the keys that are missing or do not fit the kind, each with what is wrong.

        Args:
            users: How many users the campaign has.
        """
        given = self.model_fields_set
        if self.kind == "learned":
            if not self.models:
                yield "models", "at least one model was expected: the kind is `learned`"
            for key in (*_DIGITAL, "block_errors"):
                if key in given:
                    yield key, "no key of the kind `learned`"
            return
        if self.models:
            yield "models", f"no key of the kind `{self.kind}`"
        for key in ("codec", "sharing"):
            if getattr(self, key) is None:
                yield key, f"this key is missing: the kind is `{self.kind}`"
        if self.kind != "practical" and "block_errors" in given:
            yield "block_errors", f"no key of the kind `{self.kind}`"
        if self.rate_for_snr_db is not None and len(self.rate_for_snr_db) != users:
            yield "rate_for_snr_db", f"{users} were expected (one a user), not {len(self.rate_for_snr_db)}"
