import json
from pathlib import Path

import pytest

from testbed.config.schema import campaign_schema, inventory_schema

FOLDER = Path(__file__).parents[2] / "docs" / "schema"


@pytest.mark.parametrize(
    ("name", "text", "option"),
    [("inventory.json", inventory_schema(), ""), ("campaign.json", campaign_schema(), " --campaign")],
)
def test_the_committed_schema_is_up_to_date(name: str, text: str, option: str) -> None:
    committed = (FOLDER / name).read_text(encoding="utf-8")
    assert committed == text, f"run: testbed inventory schema{option} > docs/schema/{name}"


def test_every_key_is_explained() -> None:
    for text in (inventory_schema(), campaign_schema()):
        schema = json.loads(text)
        for part in (schema, *schema["$defs"].values()):
            for key, inner in part.get("properties", {}).items():
                named = schema["$defs"].get(inner.get("$ref", "").rpartition("/")[2], {})
                assert inner.get("description") or named.get("description"), key
