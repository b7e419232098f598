"""What quality is measured on: windows of held-out text, and questions with answers to choose from.

Read at the base station, and by whoever checks a campaign file: nothing here needs NumPy or torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

__all__ = ["WAYS", "Item", "QualityError", "Window", "read_items", "read_windows", "windows_of"]

#: How a text is read: each token a batch of its own for the selection, or all of it one batch.
WAYS = ("decode", "prompt")


class QualityError(Exception):
    """A text or a question cannot be used."""


class Window(NamedTuple):
    """A window of held-out text.

    Attributes:
        text: The text's name.
        number: The window's number within its text.
        tokens: Its tokens.
    """

    text: str
    number: int
    tokens: Tuple[int, ...]


class Item(NamedTuple):
    """A multiple-choice question.

    Attributes:
        set: The name of its set.
        id: Its name within the set.
        question: What is asked.
        choices: The answers to choose from, two at least.
        answer: The right one, from 0.
    """

    set: str
    id: str
    question: str
    choices: Tuple[str, ...]
    answer: int


def windows_of(tokens: Sequence[int], size: int, count: int) -> List[Sequence[int]]:
    """Return up to ``count`` windows of ``size`` tokens, spread evenly over a text, without overlap.

    Raises:
        ValueError: The text is shorter than one window.
    """
    there = len(tokens) // size
    if there == 0:
        raise ValueError(f"a text of {len(tokens)} tokens is shorter than one window of {size}")
    taken = min(count, there)
    starts = [size * (number * there // taken) for number in range(taken)]
    return [tokens[start : start + size] for start in starts]


def read_windows(
    texts: Iterable[Tuple[str, Path]], encode: Callable[[str], List[int]], window_tokens: int, windows: int
) -> List[Window]:
    """Return the windows of all texts.

    Args:
        texts: Name and file of each text.
        encode: Returns a text's tokens.
        window_tokens: Length of a window.
        windows: The most windows of a text.

    Raises:
        QualityError: A text cannot be read, or is shorter than a window.
    """
    result: List[Window] = []
    for name, path in texts:
        tokens = encode(_read(path))
        try:
            found = windows_of(tokens, window_tokens, windows)
        except ValueError as error:
            raise QualityError(f"text {name}: {error}") from error
        result += [Window(name, number, tuple(window)) for number, window in enumerate(found)]
    return result


def read_items(files: Iterable[Tuple[str, Path]], count: Optional[int] = None) -> List[Item]:
    """Return the questions of all files.

    Args:
        files: Name and file of each set; a file holds lines such as
            ``{"id": "q1", "question": "Water boils at", "choices": ["100 C", "10 C"], "answer": 0}``.
        count: How many are taken, spread evenly over each file; all where it is ``None``.

    Raises:
        QualityError: A file cannot be read, a line is not a question, or there are too few; the message names
            the file and the line.
    """
    result: List[Item] = []
    for name, path in files:
        items: List[Item] = []
        seen: Dict[str, int] = {}
        # Not splitlines(): JSON may hold other line breaks, such as U+2028, as they are.
        for number, line in enumerate(_read(path).split("\n"), 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            item = _item(name, line, place)
            if item.id in seen:  # the records tell questions apart by their id
                raise QualityError(f"{place}: {item.id} stands twice, first in line {seen[item.id]}")
            seen[item.id] = number
            items.append(item)
        wanted = count or 1
        if len(items) < wanted:
            raise QualityError(f"{path}: {wanted} questions were asked for, and there are {len(items)}")
        taken = count or len(items)
        result += [items[number * len(items) // taken] for number in range(taken)]
    return result


def _item(name: str, line: str, place: str) -> Item:
    shape = '{"id": "q1", "question": "...", "choices": ["...", "..."], "answer": 0}'
    try:
        value = json.loads(line)
    except ValueError as error:
        raise QualityError(f"{place}: an object such as {shape} was expected ({error})") from error
    if not isinstance(value, dict) or set(value) != {"id", "question", "choices", "answer"}:
        raise QualityError(f"{place}: an object such as {shape} was expected, with these keys and no other")
    choices, answer = value["choices"], value["answer"]
    if not (isinstance(choices, list) and len(choices) >= 2 and all(map(_is_text, choices))):
        raise QualityError(f"{place}: choices: at least two texts were expected, not {choices!r}")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        text = f"the number of a choice was expected, 0 to {len(choices) - 1}, not {answer!r}"
        raise QualityError(f"{place}: answer: {text}")
    for key in ("id", "question"):
        if not _is_text(value[key]):
            raise QualityError(f"{place}: {key}: a text was expected, not {value[key]!r}")
    return Item(name, value["id"], value["question"], tuple(choices), answer)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise QualityError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise QualityError(f"{path}: text in UTF-8 was expected ({error.reason})") from error
