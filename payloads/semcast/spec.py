"""The specification of a broadcast run, as the controller writes it for the transmitter. Needs no torch.

A *block* is what every scheme sends alike: the images of a pair, how many slots, whose share. Noise and gains follow
from the pair and the repeat, so that every scheme, every model and every share meets the same channel. A *frame* is a
block sent by one model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from payloads.json_input import parse_json
from payloads.station.specs import SpecError, name_of

__all__ = [
    "FADINGS",
    "Block",
    "Frame",
    "ImageSet",
    "Scenario",
    "Spec",
    "TrialSpec",
    "channel_labels",
    "frames_of",
    "noise_seed",
    "read_spec",
    "spec_of",
]

#: What a gain can do from frame to frame: nothing, or be drawn anew for each.
FADINGS = ("none", "rayleigh")

#: Side of a patch, of which both sides of an image are multiples.
PATCH = 8
#: What fits the messages: patches along a side, and slots of a patch.
MAX_PATCHES = 1024
MAX_SLOTS = 1024
MAX_USERS = 16
DEADLINE_S = 60.0
_SUM_TOLERANCE = 1e-6


class ImageSet(NamedTuple):
    """Images of one size, for each pair those of all users.

    Attributes:
        file: The raw file: uint8, pairs x users x height x width x 3.
        pairs: How many pairs there are.
        height: Rows of an image, a multiple of 8.
        width: Columns of an image, a multiple of 8.
    """

    file: Path
    pairs: int
    height: int
    width: int

    @property
    def image_bytes(self) -> int:
        """The bytes of one image."""
        return 3 * self.height * self.width

    @property
    def grid(self) -> Tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // PATCH, self.width // PATCH


class Block(NamedTuple):
    """What is sent, whoever sends it.

    Attributes:
        set: The name of the image set.
        pair: The pair's number in it.
        slots: Real numbers sent for each patch.
        shares: The share of each user; they sum to 1.
    """

    set: str
    pair: int
    slots: int
    shares: Tuple[float, ...]


class Scenario(NamedTuple):
    """What the channel does.

    Attributes:
        snr_db: Each user's mean signal-to-noise ratio, in dB.
        fading: One of :data:`FADINGS`.
        csi_error: Variance of the error of each user's estimated gain.
    """

    snr_db: Tuple[float, ...]
    fading: str
    csi_error: float


class TrialSpec(NamedTuple):
    """A trial.

    Attributes:
        scheme: The scheme's name.
        scenario: The scenario's name.
        repeat: The number of the repeat.
    """

    scheme: str
    scenario: str
    repeat: int


class Frame(NamedTuple):
    """A block that one model sends.

    Attributes:
        number: Its number in the trial.
        number_of_block: The block's number.
        block: The block.
        model: The model's name.
    """

    number: int
    number_of_block: int
    block: Block
    model: str


class Spec(NamedTuple):
    """What a run does.

    Attributes:
        folder: The run's folder; records go below it.
        run: The run's name.
        seed: The campaign's seed.
        users: The device of each user, user 1's first.
        sets: The image sets by name.
        blocks: The blocks; a block's number is its place.
        schemes: The models of each scheme, by its name.
        scenarios: The scenarios by name.
        trials: The trials by name.
        deadline_s: The most seconds that one frame may take.
        warmup: How many frames each model sends for each set and number of slots before those that count.
    """

    folder: Path
    run: str
    seed: int
    users: Tuple[str, ...]
    sets: Mapping[str, ImageSet]
    blocks: Tuple[Block, ...]
    schemes: Mapping[str, Tuple[str, ...]]
    scenarios: Mapping[str, Scenario]
    trials: Mapping[str, TrialSpec]
    deadline_s: float = DEADLINE_S
    warmup: int = 1

    def trial(self, name: str) -> TrialSpec:
        """Return a trial.

        Raises:
            SpecError: There is none of that name.
        """
        if name not in self.trials:
            raise SpecError(f"the run has no trial {name!r}")
        return self.trials[name]


def frames_of(spec: Spec, trial: TrialSpec) -> Iterator[Frame]:
    """Yield the frames of a trial in order: all blocks with the first model, then with the second, and so on."""
    for place, model in enumerate(spec.schemes[trial.scheme]):
        for number, block in enumerate(spec.blocks):
            yield Frame(place * len(spec.blocks) + number, number, block, model)


def channel_labels(repeat: int, pair: int) -> Tuple[int, int]:
    """Return what gains and noise of a frame follow from, beside the campaign's seed and the user.

    The scenario is none of it: scenarios that differ in an SNR or in the error of an estimate meet the same fading and
    the same noise, so that what they differ by is that alone. Nor is the share: where some shares met better fades than
    others, a region would be drawn by luck.
    """
    return repeat, pair


def noise_seed(seed: int, repeat: int, pair: int, user: int) -> str:
    """Return what seeds the noise of a user (from 1) in a frame of a pair, as the records tell it."""
    return "/".join(map(str, (seed, *channel_labels(repeat, pair), user)))


def read_spec(path: Path) -> Spec:
    """Read a specification.

    Raises:
        SpecError: It cannot be read or is wrong.
    """
    try:
        value = parse_json(path.read_text())
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"{path} is no JSON: {error}") from error
    try:
        return spec_of(value, path.parent)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def spec_of(value: Any, folder: Path) -> Spec:
    """Return the specification that a JSON object holds.

    Args:
        value: The object.
        folder: The run's folder.

    Raises:
        SpecError: It is wrong.
    """
    try:
        users = tuple(name_of(name) for name in _list(value, "users"))
        spec = Spec(
            folder,
            name_of(value["run"]),
            _whole(value, "seed", None),
            users,
            {name_of(name): _image_set(one) for name, one in value["sets"].items()},
            tuple(_block(one, len(users)) for one in _list(value, "blocks")),
            {str(name): tuple(map(name_of, models)) for name, models in value["schemes"].items()},
            {str(name): _scenario(one, len(users)) for name, one in value["scenarios"].items()},
            {name_of(one["trial"]): _trial(one) for one in value.get("trials", [])},
            _number(value, "deadline_s", DEADLINE_S),
            _whole(value, "warmup", 0) if "warmup" in value else 1,
        )
    except KeyError as error:
        raise SpecError(f"{error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise SpecError(str(error)) from error
    for problem in _problems(spec):
        raise SpecError(problem)
    return spec


def _problems(spec: Spec) -> Iterator[str]:
    """Yield what does not fit together."""
    if not 1 <= len(spec.users) <= MAX_USERS or len(set(spec.users)) != len(spec.users):
        yield f"users: 1 to {MAX_USERS} different devices were expected, not {', '.join(spec.users) or 'none'}"
    if not spec.blocks:
        yield "blocks: there is none"
    if not spec.deadline_s > 0:
        yield f"deadline_s: seconds above 0 were expected, not {spec.deadline_s:g}"
    for number, block in enumerate(spec.blocks):
        if block.set not in spec.sets:
            yield f"block {number}: there is no set {block.set!r}"
        elif block.pair >= spec.sets[block.set].pairs:
            yield f"block {number}: the set {block.set} has {spec.sets[block.set].pairs} pairs, from 0"
    for name, trial in spec.trials.items():
        if not spec.schemes.get(trial.scheme):
            yield f"trial {name}: there is no scheme {trial.scheme!r} with a model"
        if trial.scenario not in spec.scenarios:
            yield f"trial {name}: there is no scenario {trial.scenario!r}"


def _image_set(value: Mapping[str, Any]) -> ImageSet:
    height, width = (_whole(value, key, PATCH) for key in ("height", "width"))
    for side in (height, width):
        if side % PATCH or side > PATCH * MAX_PATCHES:
            raise ValueError(f"sides are multiples of {PATCH} up to {PATCH * MAX_PATCHES}, not {side}")
    return ImageSet(Path(value["file"]).expanduser(), _whole(value, "pairs", 1), height, width)


def _block(value: Mapping[str, Any], users: int) -> Block:
    slots = _whole(value, "slots", 2)
    if slots % 2 or slots > MAX_SLOTS:
        raise ValueError(f"slots: an even number up to {MAX_SLOTS} was expected, not {slots}")
    shares = tuple(_finite(share, "shares") for share in _list(value, "shares"))
    if len(shares) != users or min(shares) < 0 or abs(sum(shares) - 1) > _SUM_TOLERANCE:
        raise ValueError(f"shares: {users} that sum to 1 were expected, not {list(shares)}")
    return Block(str(value["set"]), _whole(value, "pair", 0), slots, shares)


def _scenario(value: Mapping[str, Any], users: int) -> Scenario:
    snr_db = tuple(_finite(one, "snr_db") for one in _list(value, "snr_db"))
    if len(snr_db) != users:
        raise ValueError(f"snr_db: {users} were expected, not {len(snr_db)}")
    fading = value.get("fading", FADINGS[0])
    if fading not in FADINGS:
        raise ValueError(f"fading: one of {', '.join(FADINGS)} was expected, not {fading!r}")
    csi_error = _number(value, "csi_error", 0.0)
    if csi_error < 0:
        raise ValueError(f"csi_error: a variance was expected, not {csi_error:g}")
    return Scenario(snr_db, fading, csi_error)


def _trial(value: Mapping[str, Any]) -> TrialSpec:
    return TrialSpec(str(value["scheme"]), str(value["scenario"]), _whole(value, "repeat", 0))


def _list(value: Mapping[str, Any], key: str) -> List[Any]:
    found = value[key]
    if not isinstance(found, list):
        raise ValueError(f"{key}: a list was expected")
    return found


def _whole(value: Mapping[str, Any], key: str, least: Optional[int]) -> int:
    number = value[key]
    if not isinstance(number, int) or isinstance(number, bool) or (least is not None and number < least):
        at_least = "" if least is None else f" of at least {least}"
        raise ValueError(f"{key}: a whole number{at_least} was expected, not {number!r}")
    return number


def _number(value: Mapping[str, Any], key: str, default: float) -> float:
    return _finite(value.get(key, default), key)


def _finite(number: Any, key: str) -> float:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise ValueError(f"{key}: a number was expected, not {number!r}")
    return float(number)
