"""Where the model that a campaign names lies: with testbed, built by its scripts, or in a folder of the user's own."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from testbed.config.folders import built_models_folder

__all__ = ["BROADCAST", "find_model", "models_folder", "read_config"]

BROADCAST = "semcast"
"""The ``model_type`` of models that broadcast images, in their config.json."""

TRAINED_BY = "scripts/semcast_models.py"
#: Models that do not come with testbed, and what builds them.
BUILT_MODELS = {
    "smollm2-moe": "scripts/build_smollm2_moe.py",
    **{
        f"semcast-{scheme}-s{seed}": TRAINED_BY
        for scheme in ("fusion", "time-division", "superposition", "joint-division")
        for seed in (2, 3)
    },
    **dict.fromkeys(
        (
            "semcast-joint-division",
            "semcast-fusion-no-similarity",
            "semcast-fusion-window",
            "semcast-time-division-window",
        ),
        TRAINED_BY,
    ),
}


def models_folder() -> Path:
    """Return the folder of the models that come with testbed."""
    import payloads

    return Path(payloads.__path__[0]) / "models"


def find_model(name: str, base: Path, *, broadcast: bool, shipped: Path | None = None) -> Path:
    """Return the folder of a model given by its name or by a path.

    Args:
        name: The name or the path.
        base: Where a relative path starts.
        broadcast: Whether a model is wanted that broadcasts images; else one with experts.
        shipped: The folder of the models that come with testbed, where it is another one.

    Raises:
        ValueError: There is none, or it is of the other kind; the message says what there is.
    """
    shipped, built = shipped or models_folder(), built_models_folder()
    for folder in (shipped / name, built / name, base / Path(name).expanduser()):
        if (folder / "config.json").is_file():
            if _broadcasts(read_config(folder)) != broadcast:
                kinds = ("has experts", "broadcasts images")
                raise ValueError(
                    f"{folder.name} {kinds[not broadcast]}; a model that {kinds[broadcast]} was expected"
                )
            return folder.parent.resolve() / folder.name  # a link's own name may be the better one
    script = BUILT_MODELS.get(name)
    if script is not None and broadcast == (script == TRAINED_BY):
        raise ValueError(f"{name} is not built yet; build it with {script} (into {built / name})")
    folders = {path.parent for root in (shipped, built) for path in root.glob("*/config.json")}
    names = sorted({folder.name for folder in folders if _fits(folder, broadcast)})
    close = difflib.get_close_matches(name, names, n=1)
    there = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names) or 'none'}"
    raise ValueError(f"no model of this name or path (a folder with config.json): {name!r}; {there}")


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's config.json.

    Raises:
        ValueError: It cannot be read, or is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a JSON object was expected")
    return config


def _broadcasts(config: dict[str, Any]) -> bool:
    return bool(config.get("model_type") == BROADCAST)


def _fits(folder: Path, broadcast: bool) -> bool:
    try:
        return _broadcasts(read_config(folder)) == broadcast
    except ValueError:
        return not broadcast  # it is told of when it is named
