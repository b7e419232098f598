"""A key-value cache with a slot for each request: prompts are read into one, answers decoded from several at once.

Requests of any length share a batch without padding their inputs: each row stands at its own position, and the mask is
made for each row from the rule that the model asks for (causal, sliding window). A single request is served as
transformers' own growing cache serves it, with the same views and the same mask, and so with the same bits; only a
model with sliding windows, whose cache there forgets, has other bits here.
"""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["BatchingError", "SlotCache", "allow_batches", "positions_limit"]

#: What a slot is lengthened by, at least: growing copies the whole cache.
_GRAIN_TOKENS = 64
_ATTENTION = "slots"


class BatchingError(Exception):
    """The model cannot serve several requests at once."""


class _Span(NamedTuple):
    """What the next pass through the model reads and writes.

    Attributes:
        first: Its first slot.
        past: The tokens that each of its slots holds already.
        most: The most of them.
        rows: The slots' numbers as an index; ``None`` where all of them hold equally many tokens.
        positions: (B,), ``past`` as an index, likewise.
    """

    first: int
    past: Tuple[int, ...]
    most: int
    rows: Optional[torch.Tensor] = None
    positions: Optional[torch.Tensor] = None


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values; whatever their heads and dimensions are, also those of a compressed cache."""

    supports_early_init = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room as the cache wants it; what is there stays."""
        self.keys = self._roomy(self.keys, key_states)
        self.values = self._roomy(self.values, value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Keep what is new of each row, (B, heads, T, dim); return all of the rows' tokens, and what lies behind.

        Where rows are of unequal length, what lies behind a shorter row's tokens is finite and masked.
        """
        if not self.is_initialized or self._too_small():
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        return self._put(self.keys, key_states), self._put(self.values, value_states)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a slot into another."""
        if self.is_initialized:
            for held in (self.keys, self.values):
                assert held is not None
                held[target, :, :tokens] = held[source, :, :tokens]

    def room(self) -> List[Tuple[int, int]]:
        """Return for how many slots and tokens its keys and its values have room; nothing where there are none."""
        return [(held.shape[0], held.shape[2]) for held in (self.keys, self.values) if held is not None]

    def cut(self, slots: int, tokens: int) -> None:
        """Give back what lies beyond so many slots of so many tokens."""
        self.keys, self.values = (
            held
            if held is None or (held.shape[0], held.shape[2]) == (slots, tokens)
            else held[:slots, :, :tokens].clone()
            for held in (self.keys, self.values)
        )

    def scrub(self) -> None:
        """Have zeros where no numbers are."""
        if self.is_initialized:
            for held in (self.keys, self.values):
                assert held is not None
                held.nan_to_num_(0.0, 0.0, 0.0)

    def get_mask_sizes(self, query_length: int) -> Tuple[int, int]:
        """Return how many keys a pass with so many new tokens for each row sees, and where they begin."""
        return self._cache.span.most + query_length, 0

    def get_seq_length(self) -> int:
        """Return how many tokens the longest row holds."""
        return self._cache.span.most

    def get_max_length(self) -> int:
        """Return -1: there is no most."""
        return -1

    def _too_small(self) -> bool:
        assert self.keys is not None
        return self.keys.shape[0] < self._cache.slots or self.keys.shape[2] < self._cache.length

    def _roomy(self, held: Optional[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        slots, length = self._cache.slots, self._cache.length
        if held is not None:
            slots, length = max(slots, held.shape[0]), max(length, held.shape[2])
        # Zeros: what is masked is still multiplied, and NaN times 0 is NaN.
        room = torch.zeros(slots, like.shape[1], length, like.shape[3], dtype=like.dtype)
        if held is not None:
            room[: held.shape[0], :, : held.shape[2]] = held
        return room

    def _put(self, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        span = self._cache.span
        new_tokens = new.shape[2]
        held = held.narrow(0, span.first, len(span.past)).narrow(2, 0, span.most + new_tokens)
        if span.rows is None:
            held.narrow(2, span.most, new_tokens).copy_(new)
        else:
            held[span.rows, :, span.positions] = new[:, :, 0]
        return held


class SlotCache(Cache):
    """Slots for requests, numbered from 0; those that are decoded together are the first ones.

    Attributes:
        slots: How many slots there is room for.
        length: How many tokens a slot has room for.
        span: What the next pass reads and writes.

    Args:
        most_tokens: The most that a slot will ever hold.
    """

    def __init__(self, most_tokens: int) -> None:
        super().__init__(layers=[])
        self._of: List[_SlotLayer] = []
        self._most_tokens = most_tokens
        self.slots = 0
        self.length = 0
        self.span = _Span(0, (0,), 0)

    def reserve(self, slots: int, tokens: int) -> None:
        """Have room for so many slots of so many tokens from the next pass on."""
        self.slots = max(self.slots, slots)
        if tokens > self.length:
            grown = max(tokens, min(self.length * 3 // 2, self._most_tokens))
            self.length = -(-grown // _GRAIN_TOKENS) * _GRAIN_TOKENS

    def one(self, slot: int, past: int) -> None:
        """Let the next pass go on with one slot, which holds ``past`` tokens."""
        self.span = _Span(slot, (past,), past)

    def first(self, past: Sequence[int]) -> None:
        """Let the next pass give the first slots a token each; ``past`` (B,) are the tokens that each holds."""
        most = max(past)
        if all(tokens == most for tokens in past):
            self.span = _Span(0, tuple(past), most)
        else:
            self.span = _Span(0, tuple(past), most, torch.arange(len(past)), torch.tensor(past))

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a slot into another; one that holds none may be in no layer yet."""
        for layer in self._of if tokens else ():
            layer.move(source, target, tokens)

    def cut(self, slots: int, tokens: int) -> None:
        """Give back what lies beyond so many slots of so many tokens.

        All layers have equal room then, however far a pass came that failed; so some of it may be less.
        """
        rooms = [(slots, tokens), *(room for layer in self._of for room in layer.room())]
        self.slots, self.length = min(room[0] for room in rooms), min(room[1] for room in rooms)
        for layer in self._of:
            layer.cut(self.slots, self.length)

    def scrub(self) -> None:
        """Have zeros where no numbers are: what a request leaves behind is masked, and NaN times 0 is NaN."""
        for layer in self._of:
            layer.scrub()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Keep a layer's new keys and values; see :meth:`_SlotLayer.update`."""
        while len(self._of) <= layer_idx:
            self._of.append(_SlotLayer(self))
            self.layers.append(self._of[-1])
        return self._of[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens the longest row holds, before the next pass."""
        return self.span.most

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> Tuple[int, int]:
        """Return how many keys a pass with so many new tokens for each row sees, and where they begin."""
        return self.span.most + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """Return the position of the first new token: one number, or (B, 1, 1, 1) where the rows' differ."""
        positions = self.span.positions
        return self.span.most if positions is None else positions.view(-1, 1, 1, 1)


def allow_batches(model: Any) -> None:
    """Let a model's attention take rows that stand at different positions; a single row goes the way it went.

    Raises:
        BatchingError: The model's attention is not made for that.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if model.config._attn_implementation == _ATTENTION:
        return
    if model.config._attn_implementation != "sdpa":
        how = f"its attention is {model.config._attn_implementation}, and only sdpa is known to take such a batch"
        raise BatchingError(f"the model cannot decode several requests at once: {how}")
    AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
    AttentionMaskInterface.register(_ATTENTION, _slot_mask)
    model.set_attn_implementation(_ATTENTION)


def positions_limit(config: Any) -> Optional[int]:
    """Return up to which length a request's positions mean the same whoever shares its pass; ``None`` for any.

    With ``longrope`` the model turns all of a pass by other angles as soon as one of its positions is beyond the
    length that it was first trained for: a long neighbour, or a later chunk, would change what is read.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    limits: List[int] = [
        int(one["original_max_position_embeddings"])
        for one in (nested or [parameters])
        if one.get("rope_type") == "longrope"
    ]
    return min(limits) if limits else None


def _slot_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Union[int, torch.Tensor] = 0,
    kv_offset: int = 0,
    mask_function: Optional[Callable[..., torch.Tensor]] = None,
    **settings: Any,
) -> Optional[torch.Tensor]:
    """Return which keys each query sees, (B, 1, Q, K); ``None`` where a kernel knows without being told.

    The arguments are those of transformers' masks; ``q_offset`` is (B, 1, 1, 1) where rows stand at different
    positions.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    rule: Callable[..., Any] = mask_function or causal_mask_function
    if not isinstance(q_offset, torch.Tensor):
        mask: Optional[torch.Tensor] = sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, rule, **settings
        )
        return mask
    rows = torch.arange(batch_size).view(-1, 1, 1, 1)
    queries = q_offset + torch.arange(q_length).view(1, 1, -1, 1)
    keys = kv_offset + torch.arange(kv_length).view(1, 1, 1, -1)
    heads = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    seen: torch.Tensor = rule(rows, heads, queries, keys)
    return seen.expand(batch_size, 1, q_length, kv_length)
