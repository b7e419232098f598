"""The JSON schemas of inventory and campaign files, by which editors complete and check them."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from testbed.config.broadcast import BroadcastCampaign
from testbed.config.campaign import Campaign
from testbed.config.inventory import Inventory

__all__ = ["campaign_schema", "inventory_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


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
    """Return the schema of a campaign file, of any workload, as the text of a file."""
    _, schema = models_json_schema([(Campaign, "validation"), (BroadcastCampaign, "validation")])
    # Told apart by one key, so that an editor speaks of the keys of one workload only.
    is_broadcast = {"properties": {"workload": {"const": "broadcast"}}, "required": ["workload"]}
    kinds = {"then": {"$ref": "#/$defs/BroadcastCampaign"}, "else": {"$ref": "#/$defs/Campaign"}}
    return _text({"$schema": _DIALECT, "title": "Campaign", "if": is_broadcast, **kinds, **schema})


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return {"$schema": _DIALECT} | model.model_json_schema()


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(_without_own_words(schema), indent=2, ensure_ascii=False) + "\n"


def _without_own_words(part: Any) -> Any:
    """Leave out the wording of our own error messages."""
    if isinstance(part, dict):
        return {key: _without_own_words(value) for key, value in part.items() if key != "expected"}
    if isinstance(part, list):
        return [_without_own_words(value) for value in part]
    return part
