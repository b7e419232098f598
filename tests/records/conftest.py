"""One row of every table, for the tests of the records."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.records.schema import TABLES

SAMPLES: dict[str, Any] = {"string": "a", "int64": 3, "float64": 1.5, "bool": True}


@pytest.fixture
def rows() -> dict[str, dict[str, Any]]:
    """A full row of each table."""
    return {
        name: {column.name: SAMPLES[column.kind] for column in table.columns}
        for name, table in TABLES.items()
    }
