"""The table that the log of a wireless link becomes."""

from __future__ import annotations

import pandas as pd
import pyarrow.parquet as pq
import pytest

from testbed.errors import InputError
from testbed.records import RecordWriter
from testbed.telemetry.logs import radio_rows
from tests.payloads.boardlog import test_wifi as device

wireless = device.wireless


def test_a_log_and_the_table_that_is_made_of_it(wireless):
    def lose():
        (wireless / "link").write_text("Not connected.\n")

    lines = device.record(wireless, 3, lose)
    stamps = [int(line.split(",")[0]) for line in lines[1:]]
    offsets = pd.DataFrame({"t_s": [0.0], "offset_s": [1e6 - stamps[0] / 1e9]})
    rows = radio_rows(wireless / "wifi.csv", "nx", offsets, 1e6)
    assert rows["t_s"].iloc[0] == pytest.approx(0, abs=1e-6)
    assert rows["t_s"].is_monotonic_increasing
    RecordWriter(wireless / "run").write("radio", "nx", rows)
    table = pq.read_table(wireless / "run/tables/radio/nx.parquet").to_pylist()
    assert (table[0]["device"], table[0]["tx_mcs"], table[0]["rx_mbit"]) == ("nx", 7, 180.0)
    assert (table[2]["signal_dbm"], table[2]["tx_mcs"], table[2]["width_mhz"]) == (None, None, None)


def test_a_log_with_another_header_is_refused(tmp_path):
    log = tmp_path / "wifi.csv"
    log.write_text("mono_ns,rail,mw\n1,a,2\n")
    with pytest.raises(InputError, match="expected the header mono_ns,interface,signal_dbm"):
        radio_rows(log, "nx", pd.DataFrame({"t_s": [0.0], "offset_s": [0.0]}), 0.0)
