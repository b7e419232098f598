"""Answers of the OpenAI API, built from pieces of text and likelihoods. Pure."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from payloads.wdmoe.serve.text import Entry, Piece, token_name

__all__ = ["Choice", "Shape", "models", "usage"]

LEAST_LOGPROB = -9999.0  # JSON has no infinity

#: Gives the bytes of a token.
Spell = Callable[[int], bytes]


class Choice(NamedTuple):
    """One finished answer.

    Attributes:
        piece: Its text and likelihoods.
        finish: ``stop`` or ``length``.
    """

    piece: Piece
    finish: str


class Shape:
    """The form of the answers to one request.

    Attributes:
        chat: Whether they are answers to a chat.

    Args:
        chat: Whether they are answers to a chat.
        identity: The answer's id, without its prefix.
        model: The model's name.
        created_s: When it was made, in unix seconds.
        spell: Gives the bytes of a token.
        scored: Whether likelihoods are told.
        top: How many likely tokens come with each one.
        include_usage: Whether a stream counts tokens.
    """

    def __init__(
        self,
        *,
        chat: bool,
        identity: str,
        model: str,
        created_s: int,
        spell: Spell,
        scored: bool,
        top: int,
        include_usage: bool = False,
    ) -> None:
        self.chat = chat
        self._spell = spell
        self._scored = scored
        self._top = top
        self._include_usage = include_usage
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + identity,
            "created": created_s,
            "model": model,
        }

    def whole(self, choices: Sequence[Choice], counts: Dict[str, int]) -> Dict[str, Any]:
        """Return the answer in one."""
        listed = []
        for index, choice in enumerate(choices):
            said: Dict[str, Any] = {"text": choice.piece.text}
            if self.chat:
                message = {"role": "assistant", "content": choice.piece.text, "refusal": None}
                said = {"message": message}
            logprobs = self._logprobs(choice.piece.entries)
            listed.append({"index": index, **said, "logprobs": logprobs, "finish_reason": choice.finish})
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": listed, "usage": counts}

    def opening(self, index: int) -> Dict[str, Any]:
        """Return a stream's first piece of a chat's answer: who speaks."""
        return self._piece(index, {"delta": {"role": "assistant", "content": ""}}, (), None)

    def piece(self, index: int, piece: Piece, finish: Optional[str] = None) -> Dict[str, Any]:
        """Return a piece of a stream; the last one of an answer says why it ended."""
        said: Dict[str, Any] = {"text": piece.text}
        if self.chat:
            said = {"delta": {"content": piece.text} if piece.text or finish is None else {}}
        return self._piece(index, said, piece.entries, finish)

    def closing(self, counts: Dict[str, int]) -> Optional[Dict[str, Any]]:
        """Return a stream's last piece, which counts tokens; ``None`` where nobody asked for it."""
        if not self._include_usage:
            return None
        return {**self._head, "object": self._stream_kind, "choices": [], "usage": counts}

    @property
    def _stream_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _piece(
        self, index: int, said: Dict[str, Any], entries: Tuple[Entry, ...], finish: Optional[str]
    ) -> Dict[str, Any]:
        logprobs = self._logprobs(entries) if entries else None
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}
        counts = {"usage": None} if self._include_usage else {}
        return {**self._head, "object": self._stream_kind, "choices": [choice], **counts}

    def _logprobs(self, entries: Sequence[Entry]) -> Optional[Dict[str, Any]]:
        if not self._scored:
            return None
        if self.chat:
            return {"content": [self._chat_entry(entry) for entry in entries], "refusal": None}
        return {
            "tokens": [self._name(entry.token) for entry in entries],
            "token_logprobs": [entry.scored and _finite(entry.scored.logprob) for entry in entries],
            "top_logprobs": [self._likely(entry) for entry in entries] if self._top else None,
            "text_offset": [entry.offset for entry in entries],
        }

    def _likely(self, entry: Entry) -> Optional[Dict[str, float]]:
        """Return the most likely tokens and the one that was taken, by name."""
        if entry.scored is None:
            return None
        named: Dict[str, float] = {}
        for token, logprob in (*entry.scored.top, (entry.token, entry.scored.logprob)):
            name = self._name(token)
            # Two tokens may have one name, such as a space and the same as a byte.
            named[name] = max(named.get(name, LEAST_LOGPROB), _finite(logprob))
        return named

    def _chat_entry(self, entry: Entry) -> Dict[str, Any]:
        assert entry.scored is not None  # only a prompt's first token has none, and a chat has no echo
        top = [self._chat_token(token, logprob) for token, logprob in entry.scored.top]
        return {**self._chat_token(entry.token, entry.scored.logprob), "top_logprobs": top}

    def _chat_token(self, token: int, logprob: float) -> Dict[str, Any]:
        spelling = self._spell(token)
        return {"token": token_name(spelling), "logprob": _finite(logprob), "bytes": list(spelling)}

    def _name(self, token: int) -> str:
        return token_name(self._spell(token))


def usage(prompt_tokens: int, completion_tokens: int) -> Dict[str, int]:
    """Return how many tokens a request took."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def models(name: str, created_s: int, context_tokens: int) -> List[Dict[str, Any]]:
    """Return the list of the models, which are one."""
    return [
        {
            "id": name,
            "object": "model",
            "created": created_s,
            "owned_by": "testbed",
            "max_model_len": context_tokens,
        }
    ]


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
