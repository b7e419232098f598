"""What the kernel counted beside what the records and TCP account for."""

from __future__ import annotations

import pytest

from testbed.links.traffic import HEADER_BYTES, dispatch_bytes, traffic_rows, unexplained_bytes


def counters(frames: int, payload: int, drops: int = 0) -> dict[str, int]:
    return {"bytes": payload + frames * HEADER_BYTES, "packets": frames, "drops": drops, "backlog": 0}


def test_frames_are_explained_by_headers_records_and_what_tcp_sent_again() -> None:
    before = {"links": [{"device": "nx", "downlink": counters(10, 500), "uplink": counters(4, 80)}]}
    after = {
        "links": [{"device": "nx", "downlink": counters(17, 4000), "uplink": counters(9, 1088, drops=1)}]
    }
    dispatches = [
        {"device": "nx", "bytes_out": 2000, "bytes_back": 900},
        {"device": "other", "bytes_out": 9, "bytes_back": 9},
    ]
    control = {"nx": {"out": 300, "back": 100}}
    sums = dispatch_bytes(dispatches)
    rows = traffic_rows("t001", before, after, control, sums, {"nx": {"out": 1200, "back": None}})
    down, up = rows
    assert (down["direction"], down["frames"], down["dispatch_bytes"]) == ("downlink", 7, 2000)
    assert (down["retransmitted_bytes"], unexplained_bytes(down)) == (1200, 0)
    assert (up["drops"], up["retransmitted_bytes"], unexplained_bytes(up)) == (1, None, 8)
    assert unexplained_bytes({**up, "retransmitted_bytes": float("nan")}) == 8
    assert [row["retransmitted_bytes"] for row in traffic_rows("t", before, after, {}, {})] == [None, None]


@pytest.mark.parametrize("resent", [0, 5])
def test_what_was_sent_again_but_never_counted_shows_below_zero(resent: int) -> None:
    row = {"frame_bytes": HEADER_BYTES + 10, "frames": 1, "dispatch_bytes": 10, "control_bytes": 0}
    assert unexplained_bytes({**row, "retransmitted_bytes": resent}) == -resent
