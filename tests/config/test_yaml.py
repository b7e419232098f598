import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from testbed.config.yaml import Place, dotted, parse_yaml, read_yaml
from testbed.errors import InputError

FILE = Path("lab.yaml")

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
shapes = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4)
        | st.lists(inner, min_size=1, max_size=4).map(lambda values: ("mapping", values))
    ),
    max_leaves=12,
)


def with_keys(shape: Any, count: list[int]) -> Any:
    """Turn marked lists into mappings whose keys occur once in the whole document."""
    if isinstance(shape, tuple):
        result = {}
        for value in shape[1]:
            count[0] += 1
            result[f"key{count[0]}x"] = with_keys(value, count)
        return result
    if isinstance(shape, list):
        return [with_keys(value, count) for value in shape]
    return shape


def places(data: Any, place: Place = ()) -> list[Place]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    found: list[Place] = []
    for key, value in inner:
        found += [(*place, key), *places(value, (*place, key))]
    return found


@given(shapes, st.booleans())
def test_every_key_is_on_its_line(shape: Any, flow: bool) -> None:
    data = with_keys(shape, [0])
    text = yaml.safe_dump(data, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=40)
    assume(yaml.safe_load(text) == data)  # PyYAML does not write every lone U+0085 as it reads it
    document = parse_yaml(text, FILE)
    assert document.data == data
    # As YAML counts lines: not by form feeds and their like.
    lines = text.replace("\r\n", "\n").replace("\x85", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    for place in places(data):
        line = lines.split("\n")[document.lines[place] - 1]
        if isinstance(place[-1], str):
            assert place[-1] in line


@given(st.text(max_size=40))
def test_any_text_is_a_document_or_an_input_error(text: str) -> None:
    with contextlib.suppress(InputError):
        parse_yaml(text, FILE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("22:30", "22:30"),
        ("2026-01-02", "2026-01-02"),
        ("010", 10),
        ("2e9", 2e9),
        ("1.5E-3", 1.5e-3),
        ("true", True),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
    ],
)
def test_plain_values_mean_what_they_look_like(text: str, value: object) -> None:
    assert parse_yaml(f"key: {text}", FILE).data == {"key": value}


def test_anchors_and_merged_keys_keep_the_line_of_the_original() -> None:
    text = "base: &b\n  port: 1\n  user: x\nhost:\n  <<: *b\n  port: 2\n"
    document = parse_yaml(text, FILE)
    assert document.data["host"] == {"port": 2, "user": "x"}
    assert (document.lines[("host", "port")], document.lines[("host", "user")]) == (6, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "lab.yaml:3: a: the key stands twice, first in line 1"),
        ("a:\n  x: 1\n  x: 2", "lab.yaml:3: a.x: the key stands twice, first in line 2"),
        ("a: [1, 2", "lab.yaml:1: not valid YAML"),
        ("a: 1\n b: 2", "lab.yaml:2: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "lab.yaml:2: not valid YAML"),
        ("a: *none", "lab.yaml:1: not valid YAML: found undefined alias 'none'"),
        ("a: !!python/object:os.system x", "lab.yaml:1: not valid YAML: could not determine a constructor"),
        ("a: !!int x", "lab.yaml:1: not valid YAML: invalid literal"),
        ("? [1]\n: 2", "lab.yaml:1: not valid YAML: a key must be text"),
        ("a: &a [*a]", "lab.yaml:1: not valid YAML: an alias inside its own anchor"),
        ("a: \x00", "lab.yaml: not valid YAML: special characters are not allowed"),
        ("[" * 4000, "lab.yaml: not valid YAML: nested too deep"),
    ],
)
def test_broken_yaml_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, FILE)
    assert message in str(caught.value)


def test_aliases_that_explode_are_refused() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(InputError, match="too many elements"):
        parse_yaml("\n".join(rows), FILE)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


def test_places_read_as_people_write_them() -> None:
    assert dotted(("policies", 0, "selection", "k")) == "policies[0].selection.k"
