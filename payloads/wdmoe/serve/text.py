"""Tokens become text while they come: whole characters only, and nothing of a text that ends the answer. Pure."""

from __future__ import annotations

import codecs
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from payloads.wdmoe.bs.asks import Scored

__all__ = ["Entry", "Piece", "Writer", "offsets_of", "tail_of", "token_name"]

#: So many tokens that end within a character are none: UTF-8 has four bytes at most, and a token one at least.
MAX_UNFINISHED = 8
#: So many of a prompt's tokens tell how it goes on, nearly always.
_TAIL_TOKENS = 8
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Entry(NamedTuple):
    """A token's likelihood and its place.

    Attributes:
        token: Its number in the vocabulary.
        scored: What the model thought of it; ``None`` for a prompt's first token, which nothing comes before.
        offset: Where it begins in the text, in characters.
    """

    token: int
    scored: Optional[Scored]
    offset: int


class Piece(NamedTuple):
    """What has become certain of an answer.

    Attributes:
        text: The text.
        entries: Its tokens; empty where no likelihoods were asked for.
    """

    text: str
    entries: Tuple[Entry, ...]


class Writer:
    """Makes the text of one answer.

    Attributes:
        stopped: Whether a text that ends the answer has come; what is added from then on is ignored.

    Args:
        decode: Makes text of tokens.
        stops: The texts that end the answer.
        offset: Where the answer begins in the text that the entries speak of.
        before: The tokens that the text goes on from, see :func:`tail_of`; empty where it is one of its own.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        offset: int = 0,
        before: Sequence[int] = (),
    ) -> None:
        self.stopped = False
        self._decode = decode
        self._stops = tuple(stops)
        self._offset = offset
        self._tokens = list(before)
        # Tokens from `begin` are decoded together; those before `read` were written.
        self._begin, self._read = 0, len(self._tokens)
        self._made = self._given = 0  # characters
        self._held = ""
        self._waiting: List[Entry] = []

    def add(self, token: int, scored: Optional[Scored], silent: bool = False) -> Piece:
        """Add a token; return what has become certain by it.

        Args:
            token: The token.
            scored: What the model thought of it; ``None`` where nobody asked.
            silent: Whether it is none of the text, whatever the tokenizer makes of it.
        """
        if self.stopped:
            return Piece("", ())
        if scored is not None:
            self._waiting.append(Entry(token, scored, self._offset + self._made))
        if silent:
            return self._certain("")
        self._tokens.append(token)
        return self._certain(self._decoded(all_of_it=False))

    def end(self) -> Piece:
        """Return what was held back; nothing comes any more."""
        if self.stopped:
            return Piece("", ())
        self._held += self._decoded(all_of_it=True)
        piece = self._certain("")
        if self.stopped:
            return piece
        return Piece(piece.text + self._take(len(self._held)), piece.entries + self._entries(None))

    def _decoded(self, all_of_it: bool) -> str:
        """Return the characters that the newest tokens complete."""
        before = self._decode(self._tokens[self._begin : self._read])
        text = self._decode(self._tokens[self._begin :])
        unfinished = text.endswith(_UNFINISHED) and len(self._tokens) - self._read < MAX_UNFINISHED
        more = _behind(text, before)
        if not more or (unfinished and not all_of_it):
            return ""
        if text.startswith(before):
            self._begin = self._read
        self._read = len(self._tokens)
        self._made += len(more)
        return more

    def _certain(self, more: str) -> Piece:
        self._held += more
        places = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.stopped = True
            text = self._take(min(places))
            return Piece(text, self._entries(self._offset + self._given))
        text = self._take(len(self._held) - _open_end(self._held, self._stops))
        return Piece(text, self._entries(self._offset + self._given))

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self._given += count
        return text

    def _entries(self, before: Optional[int]) -> Tuple[Entry, ...]:
        """Take the entries that begin before a place; all where it is ``None``."""
        count = len(self._waiting)
        if before is not None:
            count = sum(entry.offset < before for entry in self._waiting)
        taken, self._waiting = tuple(self._waiting[:count]), self._waiting[count:]
        return taken


def _behind(text: str, before: str) -> str:
    """Return what a text has behind another, or from where they part: a prompt may end within a character."""
    pairs = enumerate(zip(text, before))
    return text[next((place for place, (one, other) in pairs if one != other), len(before)) :]


def _open_end(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end may be the beginning of a text that ends the answer."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0


def tail_of(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> List[int]:
    """Return a prompt's last tokens, as many as tell how what comes behind them is written.

    The decoders of SentencePiece's models drop a space before the first word of what they are given, and make nothing
    of bytes whose character began before it.

    Args:
        tokens: The prompt's tokens.
        decode: Makes text of tokens.
    """
    count = _TAIL_TOKENS
    while count < len(tokens) and decode(tokens[-count:])[:1] in ("", _UNFINISHED):
        count *= 2
    return list(tokens[-count:])


def offsets_of(tokens: Sequence[int], spell: Callable[[int], bytes], text: str) -> List[int]:
    """Return where each token begins in the text of all, in characters.

    Args:
        tokens: The tokens.
        spell: Gives the bytes of one as it stands within a text.
        text: The text; SentencePiece's models write none of the space before its first word.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets: List[int] = []
    characters = 0
    for token in tokens:
        offsets.append(characters)
        spelling = spell(token)
        if not characters and spelling[:1] == b" " and not text.startswith(" "):
            spelling = spelling[1:]
        characters += len(decoder.decode(spelling))
    return offsets


def token_name(spelling: bytes) -> str:
    """Return a token as a string: a part of a character as the OpenAI API writes it."""
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)
