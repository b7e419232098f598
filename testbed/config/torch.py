"""Where the inventory says that a host's torch comes from: for each JetPack a source of its own."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from testbed.config.model import Model

__all__ = ["SourceAddress", "TorchSource", "TorchSources"]

SourceAddress = Annotated[
    str,
    Field(
        pattern=r"^(?:https?|file)://[^\s@]+$",
        json_schema_extra={
            "expected": "an address that begins with `https://`, `http://` or `file://`, with no password in it"
        },
    ),
]
Requirement = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[A-Za-z0-9._,-]+\])?\s*(?:(?:[=!<>~]=|[<>])\s*[A-Za-z0-9.*+!_-]+,?\s*)*$",
        json_schema_extra={"expected": "a package as pip takes it, such as `torch==2.5.0`"},
    ),
]
WheelAddress = Annotated[
    str,
    Field(
        pattern=r"^(?:https?|file)://[^\s@]+\.whl(?:#sha256=[0-9a-f]{64})?$",
        json_schema_extra={
            "expected": "the address of a `.whl` file, which may end with `#sha256=` and its 64 hexadecimal digits"
        },
    ),
]


class TorchSource(Model):
    """Where torch comes from: an index, a page of links, or wheels by address."""

    packages: Annotated[tuple[Requirement, ...], Field(min_length=1)] = ("torch",)
    """What is installed from there. What that needs in turn comes from `python.index`, or the general index."""
    index: SourceAddress | None = None
    """The address of a package index, such as that of the Jetson AI Lab for one JetPack and CUDA."""
    find_links: SourceAddress | None = None
    """The address of a page, or a folder of the host, that links to wheels."""
    wheels: tuple[WheelAddress, ...] = ()
    """The addresses of the wheels themselves; one that ends with `#sha256=...` is checked against it."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [key for key in ("index", "find_links", "wheels") if getattr(self, key)]
        if len(named) > 1:
            raise ValueError(
                f"one of `index`, `find_links` and `wheels` was expected, not {' and '.join(named)}"
            )
        return self

    @property
    def general(self) -> bool:
        """Whether nothing is named, so that pip takes what it takes by itself: the general index."""
        return not (self.index or self.find_links or self.wheels)


class TorchSources(Model):
    """Where torch comes from, by the JetPack of the host."""

    model_config = ConfigDict(populate_by_name=True)

    jetpack_5: Annotated[TorchSource | None, Field(alias="5")] = None
    """On JetPack 5."""
    jetpack_6: Annotated[TorchSource | None, Field(alias="6")] = None
    """On JetPack 6."""
    jetpack_7: Annotated[TorchSource | None, Field(alias="7")] = None
    """On JetPack 7."""
    other: TorchSource | None = None
    """On a host that is no Jetson."""
    any: TorchSource | None = None
    """Wherever nothing else is named."""

    def source(self, jetpack: str | None) -> TorchSource | None:
        """Return the source for a host of a JetPack's version, or for one that is no Jetson."""
        key = f"jetpack_{jetpack.partition('.')[0]}" if jetpack else "other"
        found: TorchSource | None = getattr(self, key, None)
        return found or self.any
