"""JSON from others: what is nested too deep is refused before a parser can stumble over it."""

from __future__ import annotations

import gc
import json
import threading
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.json_input import MAX_DEPTH, parse_json

LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.text(alphabet='[]{}"\\')
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[{"\\a'), inner), max_leaves=20
)


@given(VALUES, st.booleans())
def test_a_value_is_read_as_it_was_written(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == value
    assert parse_json(text.encode("utf-8", "surrogatepass" if ascii_only else "strict")) == value


@given(VALUES, st.integers(0, 2 * MAX_DEPTH), st.booleans())
def test_only_the_depth_counts(value: Any, levels: int, lists: bool) -> None:
    # Many brackets beside each other, and many in strings, are no depth.
    for _ in range(levels):
        value = [value] if lists else {"[[": value}
    value = [value, ["[" * 100] * 100, {'"{' * 100: {}}]
    depth = _depth_of(value)
    if depth <= MAX_DEPTH:
        assert parse_json(json.dumps(value)) == value
    else:
        with pytest.raises(ValueError, match=f"more than {MAX_DEPTH} deep"):
            parse_json(json.dumps(value))


def _depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth_of, value), default=0) if isinstance(value, list) else 0


@pytest.mark.parametrize(
    "text", ["", "[", '"', '"\\', '["', "]" * 200 + "[" * 100, b"\xff", '{"a":' * 30_000]
)
def test_what_is_no_json_is_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_reading_takes_time_by_the_length_of_the_text() -> None:
    # Escaped quotes behind a quote that is never closed: a pattern that starts anew at each of them takes hours.
    with pytest.raises(ValueError, match="Unterminated"):
        parse_json("[" + "[]," * MAX_DEPTH + '"' + '\\"' * 500_000)


def test_a_collector_at_the_deepest_place_ends_nothing() -> None:
    """Under Python 3.8 a hook that runs while the parser is as deep as it can go ends the process."""
    called: List[str] = []

    def collected(phase: str, _info: object) -> None:
        called.append(phase)

    def read() -> None:
        for spare in range(50):
            kept = [[] for _ in range(spare)]  # type: List[List[int]]
            with pytest.raises(ValueError, match="deep"):
                parse_json("[" * 60_000)
            kept.clear()

    before = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(5, 1, 1)
    try:
        reader = threading.Thread(target=read)
        reader.start()
        reader.join()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(collected)
    assert called
