"""A campaign names a model that scripts built, by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.config.campaign import _known_model


def known(name: str) -> Path:
    class Info:
        context = None

    return _known_model(name, Info())


def test_a_model_in_the_cache_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"smollm2-moe is not built yet; build it with scripts/build_smollm2_moe\.py"
    ):
        known("smollm2-moe")
    folder = tmp_path / "testbed" / "models" / "smollm2-moe"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert known("smollm2-moe") == folder.resolve()
    with pytest.raises(ValueError, match="did you mean smollm2-moe"):
        known("smollm2-mo")
    assert known("tiny-mixtral").name == "tiny-mixtral"
