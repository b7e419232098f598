"""Families of models: where a checkpoint keeps its experts, and which class holds them in transformers.

A family is one file here, named as the ``model_type`` of its configuration, with a :class:`Family` called ``FAMILY``;
it is found by being there. Neither torch nor transformers is imported before a model is made.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Dict, Mapping, Optional

from payloads.wdmoe.families.base import ConfigError, ExpertKey, Family, ModelShape

__all__ = ["FAMILIES", "ConfigError", "ExpertKey", "Family", "ModelShape", "family_of"]

#: What is here and no family: the types, and the classes of a model that transformers does not have.
_OTHERS = ("base", "moefied")


def _found() -> Dict[str, Family]:
    names = sorted(module.name for module in iter_modules(__path__) if module.name not in _OTHERS)
    families = (import_module(f"{__name__}.{name}").FAMILY for name in names)
    return {family.name: family for family in families}


FAMILIES: Dict[str, Family] = _found()


def family_of(config: Mapping[str, Any]) -> Optional[Family]:
    """Return the family that a configuration belongs to, or ``None`` if it is not known."""
    return FAMILIES.get(str(config.get("model_type")))
