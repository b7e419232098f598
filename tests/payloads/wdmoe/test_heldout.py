"""Windows of text and files of questions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.wdmoe.bs.heldout import QualityError, read_items, read_windows, windows_of

GOOD = {"id": "q1", "question": "Water boils at", "choices": ["100 C", "10 C"], "answer": 0}


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 20))
def test_windows_are_whole_in_order_and_do_not_overlap(length, size, count):
    tokens = range(length)
    if length < size:
        with pytest.raises(ValueError, match="shorter than one window"):
            windows_of(tokens, size, count)
        return
    windows = windows_of(tokens, size, count)
    assert len(windows) == min(count, length // size)
    assert all(len(window) == size for window in windows)
    assert all(before[-1] < after[0] for before, after in zip(windows, windows[1:]))


def test_texts_become_windows_with_their_names(tmp_path):
    (tmp_path / "a.txt").write_text("abcdef")
    (tmp_path / "b.txt").write_text("uvwxyz")
    texts = [("a", tmp_path / "a.txt"), ("b", tmp_path / "b.txt")]
    windows = read_windows(texts, lambda text: [ord(char) for char in text], 2, 2)
    assert [(w.text, w.number, "".join(map(chr, w.tokens))) for w in windows] == [
        ("a", 0, "ab"),
        ("a", 1, "cd"),
        ("b", 0, "uv"),
        ("b", 1, "wx"),
    ]
    with pytest.raises(QualityError, match="text a: a text of 6 tokens is shorter than one window of 7"):
        read_windows(texts, list, 7, 2)
    with pytest.raises(QualityError, match=r"cannot read .*c\.txt"):
        read_windows([("c", tmp_path / "c.txt")], list, 2, 2)


def write(path, *items):
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))
    return [(path.stem, path)]


def test_questions_are_taken_evenly_from_the_whole_file(tmp_path):
    files = write(tmp_path / "all.jsonl", *({**GOOD, "id": f"q{n}"} for n in range(10)))
    assert [item.id for item in read_items(files, 4)] == ["q0", "q2", "q5", "q7"]
    assert [item.id for item in read_items(files)] == [f"q{n}" for n in range(10)]
    first = read_items(files)[0]
    assert (first.set, first.question, first.choices, first.answer) == (
        "all",
        GOOD["question"],
        ("100 C", "10 C"),
        0,
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{", "an object such as"),
        ("[]", "an object such as"),
        ({**GOOD, "more": 1}, "these keys and no other"),
        ({**GOOD, "choices": ["one"]}, "at least two texts"),
        ({**GOOD, "choices": ["one", ""]}, "at least two texts"),
        ({**GOOD, "answer": 2}, "answer: the number of a choice was expected, 0 to 1, not 2"),
        ({**GOOD, "answer": True}, "answer: the number of a choice"),
        ({**GOOD, "question": " "}, "question: a text was expected"),
        (GOOD, "q1 stands twice, first in line 1"),
    ],
)
def test_a_wrong_question_is_named_with_its_line(tmp_path, wrong, said):
    files = write(tmp_path / "all.jsonl", GOOD, "", wrong)
    with pytest.raises(QualityError, match=said) as caught:
        read_items(files)
    assert f"{files[0][1]}:3: " in str(caught.value)


def test_more_questions_than_there_are_are_refused(tmp_path):
    files = write(tmp_path / "all.jsonl", GOOD)
    with pytest.raises(QualityError, match="2 questions were asked for, and there are 1"):
        read_items(files, 2)
