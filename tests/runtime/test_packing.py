"""A layer's pairs as messages: what few pairs and many become is the same, and answers land where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.wdmoe.bs import packing
from payloads.wdmoe.bs.packing import Gathered, outgoing, split
from payloads.wire.frames import HEADER_BYTES, FrameError, pack_result, unpack_dispatch

EXPERTS, WIDTH = 9, 4


@st.composite
def layers(draw):
    """Tokens, the pairs that are asked for, sorted by expert, and the experts' devices."""
    tokens, chosen = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    picks = [draw(st.permutations(range(EXPERTS)))[:chosen] for _ in range(tokens)]
    index = np.array(picks).reshape(-1)
    asked = np.array(draw(st.lists(st.booleans(), min_size=len(index), max_size=len(index))))
    places = np.argsort(index, kind="stable")
    places = places[asked[places]]
    device_of = np.array(draw(st.lists(st.integers(0, 3), min_size=EXPERTS, max_size=EXPERTS)))
    return tokens, chosen, index[places], places, device_of


def frame(parcel):
    return b"".join(bytes(piece) for piece in parcel.buffers)


@settings(deadline=None)
@given(layers(), st.sampled_from([None, "int8", "float32"]))
def test_what_is_sent_comes_back_to_its_place(layer, activations):
    tokens, chosen, experts, places, device_of = layer
    rows = torch.arange(tokens * WIDTH, dtype=torch.float32).view(tokens, WIDTH) - 3
    out = outgoing(5, 7, rows, chosen, activations)
    shares = {
        name: {device: (s.experts, s.counts, s.places.tolist()) for device, s in way.items()}
        for name, way in (
            ("few", packing._few(experts, places, device_of)),
            ("many", packing._many(experts, places, device_of) if len(experts) else {}),
        )
    }
    assert shares["few"] == shares["many"]
    parcels = split(out, experts, places, device_of, lambda device: device + 40)
    assert sorted(place for one in parcels for place in one.places.tolist()) == sorted(places.tolist())
    gathered = Gathered(out, torch.float32, whole=False)
    for parcel in parcels:
        asked = unpack_dispatch(memoryview(bytearray(frame(parcel)))[HEADER_BYTES:])
        assert (asked.layer, asked.step, asked.rows) == (5, 7, parcel.tokens)
        assert {int(device_of[expert]) for expert in asked.experts} == {parcel.device}
        size = len(asked.data) // asked.rows
        echoed = b"".join(bytes(asked.data[row * size : (row + 1) * size]) for row in asked.indices)
        answer = memoryview(pack_result(asked, 1, 2, 3, 4, False, parcel.sequence) + echoed)[HEADER_BYTES:]
        gathered.take(out, parcel, answer)
        with pytest.raises(FrameError):
            gathered.take(out._replace(layer=6), parcel, answer)
    got = gathered.rows()
    for pair in range(tokens * chosen):
        expected = rows[pair // chosen] if pair in places else torch.zeros(WIDTH)
        assert got[pair].tolist() == pytest.approx(expected.tolist(), abs=0.2 if activations == "int8" else 0)
