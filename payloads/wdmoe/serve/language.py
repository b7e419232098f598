"""A model's tokenizer, for many threads: text to tokens and back, tokens to bytes, chats to prompts."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from payloads.wdmoe.serve.errors import ApiError, bad_request
from payloads.wdmoe.serve.openai_requests import Message, Prompt

__all__ = ["Language", "byte_of_character", "spelling"]

_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
_WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


class Language:
    """The tokenizer of the model that is served. Its methods may be called from any thread.

    A tokenizer must not be used by two threads at once, so this one is nobody else's.

    Attributes:
        model: The model's name.
        vocabulary: How many tokens the model knows; the tokenizer may know less.
        context_tokens: The longest text that the model can read, in tokens.
        stop_tokens: The tokens that end a text.

    Args:
        folder: The model's folder.
        model: The model's name.
        vocabulary: How many tokens the model knows.
        context_tokens: The longest text that the model can read.
        stop_tokens: The tokens that end a text.
    """

    def __init__(
        self, folder: Path, model: str, vocabulary: int, context_tokens: int, stop_tokens: Sequence[int]
    ) -> None:
        from transformers import AutoTokenizer

        self.model = model
        self.vocabulary = vocabulary
        self.context_tokens = context_tokens
        self.stop_tokens = tuple(stop_tokens)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._special = frozenset(self._tokenizer.all_special_ids)
        self._lock = threading.Lock()
        self._bytes = byte_of_character()
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        self._bytewise = "ByteLevel" in str(getattr(backend, "decoder", ""))

    def encode(self, prompt: Prompt, special: bool = True) -> List[int]:
        """Return the tokens of a prompt.

        Args:
            prompt: A text, or tokens, which are checked.
            special: Whether a text gets the tokens that the model expects at its beginning.

        Raises:
            ApiError: It holds a token that the model does not know, or a text half a character.
        """
        if isinstance(prompt, str):
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise bad_request("prompt", "the text holds half of a surrogate pair: no Unicode") from None
            with self._lock:
                encoded = self._tokenizer(prompt, verbose=False, add_special_tokens=special)
            tokens = [int(token) for token in encoded["input_ids"]]
        else:
            tokens = list(prompt)
            for token in tokens:
                if not 0 <= token < self.vocabulary:
                    raise bad_request("prompt", f"no such token: {token}; there are {self.vocabulary}")
        return tokens

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of tokens."""
        with self._lock:
            text: str = self._tokenizer.decode(
                list(tokens), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
        return text

    def spell(self, token: int) -> bytes:
        """Return the bytes of one token as it stands within a text."""
        with self._lock:
            raw: Optional[str] = self._tokenizer.convert_ids_to_tokens(token)
        if raw is None:
            return b""
        return spelling(raw, self._bytes if self._bytewise and token not in self._special else None)

    def offsets(self, text: str) -> List[int]:
        """Return where each token of a text's prompt begins in it, in characters.

        A token that is none of the text, as one for its beginning, ends where it begins.
        """
        with self._lock:
            encoded = self._tokenizer(text, verbose=False, return_offsets_mapping=True)
        offsets: List[int] = []
        end = 0
        for first, last in encoded["offset_mapping"]:
            # Some tokenizers leave a space out of the place of the word that it belongs to.
            offsets.append(end if first == last else min(first, end))
            end = max(end, last)
        return offsets

    def chat(self, messages: Sequence[Message]) -> List[int]:
        """Return the tokens of a chat, up to where the answer begins.

        Raises:
            ApiError: The model has no template for chats, or it does not take this one.
        """
        if not self._tokenizer.chat_template:
            raise ApiError(
                400,
                "the model has no chat template: use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        said = [message._asdict() for message in messages]
        try:
            with self._lock:
                text: str = self._tokenizer.apply_chat_template(
                    said, tokenize=False, add_generation_prompt=True
                )
        except Exception as error:  # what a template raises is up to its author
            raise bad_request("messages", f"the model's chat template refused them: {error}") from error
        return self.encode(text, special=False)

    def info(self) -> Dict[str, Any]:
        """Return what a client needs to know to count and end texts."""
        tokenizer = self._tokenizer
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "chat_template": tokenizer.chat_template,
            "model_max_length": self.context_tokens,
        }


def spelling(raw: str, bytes_of: Optional[Dict[str, int]]) -> bytes:
    """Return the bytes of a token of a vocabulary.

    Args:
        raw: The token as the vocabulary has it.
        bytes_of: The byte that each character stands for, where the vocabulary is one of bytes.
    """
    if bytes_of is not None:
        if all(character in bytes_of for character in raw):
            return bytes(bytes_of[character] for character in raw)
        return raw.encode()  # a token that was added as it is
    match = _BYTE_TOKEN.match(raw)
    if match is not None:
        return bytes([int(match[1], 16)])
    return raw.replace(_WORD_START, " ").encode()


def byte_of_character() -> Dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for, as GPT-2 has it."""
    shown: Tuple[range, ...] = (range(33, 127), range(161, 173), range(174, 256))
    known = {chr(byte): byte for group in shown for byte in group}
    hidden = [byte for byte in range(256) if byte not in known.values()]
    return {**known, **{chr(256 + place): byte for place, byte in enumerate(hidden)}}
