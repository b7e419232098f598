"""Tokens become text: whole characters, nothing after a text that ends the answer, every likelihood once."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from payloads.wdmoe.bs.asks import Scored
from payloads.wdmoe.serve.language import byte_of_character, spelling
from payloads.wdmoe.serve.text import Writer, offsets_of, token_name


def decode(tokens):
    return bytes(tokens).decode(errors="replace")


def written(text, stops, *, scored=True, offset=0):
    """Write a text byte by byte; return the pieces and whether it was stopped."""
    writer = Writer(decode, stops, offset)
    pieces = []
    for token in text.encode():
        pieces.append(writer.add(token, Scored(token, -1.0, ()) if scored else None))
        if writer.stopped:
            break
    pieces.append(writer.end())
    return pieces, writer.stopped


ALPHABET = st.sampled_from("abAB é€🙂\n")


@given(st.text(ALPHABET, max_size=30), st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3))
@example("aab", ["ab"])
@example("abab", ["abb", "ba"])
@example("a€", ["€"])
def test_the_pieces_are_the_text_up_to_the_first_text_that_ends_it(text, stops):
    places = [text.find(stop) for stop in stops if stop in text]
    # Tokens come one by one: of two that overlap, the one that is complete first ends the answer.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    pieces, stopped = written(text, stops)
    whole = "".join(piece.text for piece in pieces)
    assert stopped == bool(places)
    if not places:
        assert whole == text
    else:
        first = min(text.find(s) for s in stops if s in text and text.find(s) + len(s) == min(ends))
        assert whole == text[:first]
    entries = [entry for piece in pieces for entry in piece.entries]
    assert [entry.token for entry in entries] == list(text.encode())[: len(entries)]
    assert len(entries) == len(whole.encode())
    # A token is told with the text that it begins in, or before it; never one that does not belong to the answer.
    given_text = ""
    for piece in pieces:
        given_text += piece.text
        assert all(entry.offset <= len(given_text) for entry in piece.entries)


def test_what_may_become_the_end_is_held_back_and_given_when_it_does_not():
    writer = Writer(decode, ["STOP"])
    texts = [writer.add(token, None).text for token in b"a STO, b"]
    assert texts == ["a", " ", "", "", "", "STO,", " ", "b"]
    writer = Writer(decode, ["STOP"])
    assert [writer.add(token, None).text for token in b"ST"] == ["", ""]
    assert writer.end().text == "ST"


def test_a_character_of_several_tokens_comes_at_once_and_a_broken_one_at_the_end():
    writer = Writer(decode, [])
    assert [writer.add(token, None).text for token in "é€".encode()] == ["", "é", "", "", "€"]
    assert writer.add(0xE2, None).text == ""
    assert writer.end().text == "\N{REPLACEMENT CHARACTER}"


def test_bytes_that_are_no_text_do_not_pile_up():
    calls = []

    def counted(tokens):
        calls.append(len(tokens))
        return decode(tokens)

    writer = Writer(counted, [])
    text = "".join(writer.add(0xFF, None).text for _ in range(100)) + writer.end().text
    assert text == "\N{REPLACEMENT CHARACTER}" * 100
    assert max(calls) < 20


def test_a_character_that_the_prompt_begins_is_part_of_the_answer():
    writer = Writer(decode, [], 2, "a€".encode()[:3])
    pieces = [writer.add(token, Scored(token, -1.0, ())) for token in [*"€".encode()[2:], *b"bc"]]
    assert [piece.text for piece in pieces] == ["€", "b", "c"]
    assert [piece.entries[0].offset for piece in pieces] == [2, 3, 4]


def test_a_token_that_ends_the_text_is_counted_and_not_written():
    writer = Writer(decode, [])
    assert writer.add(65, Scored(65, -1.0, ())).text == "A"
    assert writer.add(66, Scored(66, -2.0, ()), silent=True).text == ""
    piece = writer.end()
    assert (piece.text, [entry.token for entry in piece.entries]) == ("", [66])


def test_offsets_are_in_characters_and_names_show_parts_of_them():
    tokens = list("aé€b".encode())
    assert offsets_of(tokens, lambda token: bytes([token]), "aé€b") == [0, 1, 1, 2, 2, 2, 3]
    words = [b" It", b" is"]
    assert offsets_of([0, 1], words.__getitem__, "It is") == [0, 2]
    assert offsets_of([0, 1], words.__getitem__, " It is") == [0, 3]
    assert token_name("é".encode()) == "é"
    assert token_name(b"\xe2\x82") == "bytes:\\xe2\\x82"


@pytest.mark.parametrize(
    ("raw", "bytewise", "expected"),
    [
        ("Ġthe", True, b" the"),
        ("âĤ¬", True, "€".encode()),
        ("<|im_end|>", True, b"<|im_end|>"),
        ("▁the", False, b" the"),
        ("<0xE2>", False, b"\xe2"),
        ("Ġthe", False, "Ġthe".encode()),
        ("</s>", False, b"</s>"),
    ],
)
def test_a_token_is_spelled_as_it_stands_in_a_text(raw, bytewise, expected):
    assert spelling(raw, byte_of_character() if bytewise else None) == expected


def test_every_byte_has_one_stand_in():
    assert sorted(byte_of_character().values()) == list(range(256))
