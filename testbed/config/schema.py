"""The JSON schemas of inventory and campaign files, by which editors complete and check them."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from testbed.config.campaign import Campaign
from testbed.config.inventory import Inventory

__all__ = ["campaign_schema", "inventory_schema"]


def inventory_schema() -> str:
    """Return the schema of an inventory file as the text of a file."""
    schema = _schema(Inventory)
    host = schema["$defs"]["Host"]
    # What a host leaves out may stand in the defaults, and the defaults are a part of a host.
    host.pop("required", None)
    schema["properties"]["defaults"] = {"$ref": "#/$defs/Host"} | {
        "description": schema["properties"]["defaults"]["description"]
    }
    return _text(schema)


def campaign_schema() -> str:
    """Return the schema of a campaign file as the text of a file."""
    return _text(_schema(Campaign))


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | model.model_json_schema()


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(_without_own_words(schema), indent=2, ensure_ascii=False) + "\n"


def _without_own_words(part: Any) -> Any:
    """Leave out the wording of our own error messages."""
    if isinstance(part, dict):
        return {key: _without_own_words(value) for key, value in part.items() if key != "expected"}
    if isinstance(part, list):
        return [_without_own_words(value) for value in part]
    return part
