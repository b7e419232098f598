"""The tables of a run, declared once: the Parquet schema, the CSV headers and docs/records.md all follow from here.

Every time column is named ``t_*_s`` and holds seconds since the start of the run on the base station's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SCHEMA_VERSION", "TABLES", "Column", "Table", "arrow_schema", "markdown"]

SCHEMA_VERSION = 2

Kind = Literal["string", "int64", "float64", "bool"]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: The column's name, with its unit at the end where it has one.
        kind: The type of its values.
        unit: The unit for people: ``s``, ``ms``, ``bytes``; empty for a plain number or a name.
        meaning: One line for people.
        nullable: Whether a value may be missing.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: The table's name, and that of its folder under ``tables/``.
        meaning: What one row stands for.
        columns: The columns, in order.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column:
        """Return one column; a KeyError names the table."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"table {self.name} has no column {name}")


def _text(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, "string", "", meaning, nullable)


def _count(name: str, meaning: str, unit: str = "", *, nullable: bool = False) -> Column:
    return Column(name, "int64", unit, meaning, nullable)


def _flag(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, "bool", "", meaning, nullable)


def _number(name: str, meaning: str, unit: str = "", *, nullable: bool = False) -> Column:
    if not unit:
        unit = next((u for end, u in _UNITS.items() if name.endswith(end)), "")
    return Column(name, "float64", unit, meaning, nullable)


_UNITS = {
    "_mbit": "Mbit/s",
    "_ms": "ms",
    "_mw": "mW",
    "_s": "s",
    "mw": "mW",
    "_dbm": "dBm",
    "_mhz": "MHz",
}

_TRIAL = _text("trial", "the trial: t001 and so on, in the order of running")
_REQUEST = _text("request", "the prompt that was answered")
_DEVICE = _text("device", "the device's name in the inventory")

_ALL = (
    Table(
        "trials",
        "one policy in one scenario with one repeat; the row is written last, so a trial is whole or not there",
        (
            _TRIAL,
            _count("order", "place in the interleaved order of running"),
            _text("policy", "the policy's name"),
            _text("scenario", "the link scenario's name"),
            _count("repeat", "the repeat, from 0: equal repeats of two policies are compared as a pair"),
            _text("state", "completed or failed"),
            _number("t_start_s", "when the trial began"),
            _number("t_end_s", "when the trial ended"),
            _flag(
                "links_ok", "whether every link was within its tolerance when last verified", nullable=True
            ),
            _text(
                "links_error",
                "what else was wrong with its links: a line whose process ended, a change that came to nothing",
                nullable=True,
            ),
            _text("error", "why it failed", nullable=True),
        ),
    ),
    Table(
        "requests",
        "one prompt answered in one trial",
        (
            _TRIAL,
            _REQUEST,
            _flag("warmup", "a warm-up request: recorded, and left out of every figure of the report"),
            _count("prompt_tokens", "tokens of the prompt", "tokens"),
            _count("output_tokens", "tokens that were generated", "tokens"),
            _number("t_start_s", "when the base station began with it"),
            _number("ttft_ms", "time to the first token"),
            _number("e2el_ms", "time to the last token"),
            _text("text", "the text that was generated", nullable=True),
        ),
    ),
    Table(
        "tokens",
        "one generated token",
        (
            _TRIAL,
            _REQUEST,
            _count("position", "place in the answer, from 0; position 0 includes the reading of the prompt"),
            _count("token", "the token's number in the vocabulary"),
            _number("t_s", "when the token was there"),
            _number("duration_ms", "position 0: ttft; else the time since the token before (itl)"),
            _number("bs_ms", "the part of it that the base station itself computed", nullable=True),
            _number("nll", "negative log-likelihood of the token", "nat", nullable=True),
        ),
    ),
    Table(
        "dispatches",
        "one layer's tokens sent to one device, and their answer; quality passes have the trial quality-POLICY",
        (
            _TRIAL,
            _REQUEST,
            _count("step", "the position of the token that was being made"),
            _count("layer", "the MoE layer, from 0"),
            _DEVICE,
            _count("tokens", "rows of hidden state that were sent", "tokens"),
            _count("assignments", "pairs of a token and an expert that the device computed"),
            _count(
                "dropped",
                "pairs of token and expert that the policy left out here; a device left with none has no row",
            ),
            _count("bytes_out", "whole frames to the device, header and payload", "bytes"),
            _count("bytes_back", "whole frames from the device, header and payload", "bytes"),
            _number("t_send_s", "base station: before the first byte is sent"),
            _number("t_first_s", "base station: the first byte of the answer is there", nullable=True),
            _number("t_done_s", "base station: the last byte of the answer is there"),
            _number("t_received_s", "device: the last byte of the tokens is there", nullable=True),
            _number("t_started_s", "device: the computation begins", nullable=True),
            _number("t_computed_s", "device: the computation is done", nullable=True),
            _number("t_replied_s", "device: the answer begins to leave", nullable=True),
            _number("compute_ms", "device: time in the experts", nullable=True),
            _number(
                "predicted_ms", "what the policy's latency model expected for this dispatch", nullable=True
            ),
        ),
    ),
    Table(
        "clocks",
        "one estimate of a device's clock",
        (
            _number("t_s", "when it was estimated"),
            _DEVICE,
            _number(
                "offset_s",
                "what is added to the device's monotonic clock to give the base station's unix seconds",
            ),
            _number("rtt_ms", "round trip of the ping behind the estimate; the error is at most half of it"),
        ),
    ),
    Table(
        "quality",
        "one window of held-out text read under one policy",
        (
            _text("policy", "the policy's name"),
            _text("text", "the text's name"),
            _count("window", "the window's number within its text"),
            _count("tokens", "tokens that were predicted", "tokens"),
            _number("nll_sum", "sum of their negative log-likelihoods", "nat"),
        ),
    ),
    Table(
        "links",
        "one probe of a link with messages of one size; a row without message_bytes is a rate that came into force",
        (
            _number("t_s", "when it was set or measured"),
            _text("trial", "the trial that it was set or verified for", nullable=True),
            _text("scenario", "the scenario that was in force", nullable=True),
            _DEVICE,
            _text("direction", "downlink (to the device) or uplink"),
            _text("backend", "what shapes the link, none where nothing does", nullable=True),
            _text(
                "cause",
                "why the rate came into force: set, block (of a channel), allocate (of a policy), rerate or hold; "
                "null for a probe",
                nullable=True,
            ),
            _text("why", "what the one who asked for it said, such as the layer", nullable=True),
            _text(
                "state",
                "a probe: idle, or busy (all other devices at full load in both directions)",
                nullable=True,
            ),
            _number(
                "asked_mbit",
                "the rate asked for, frames included; null where the direction was left alone",
                nullable=True,
            ),
            _number("delay_ms", "the one-way delay asked for", nullable=True),
            _number("loss_percent", "how many frames are to be lost; null for probes", "%", nullable=True),
            _count("message_bytes", "size of a message", "bytes", nullable=True),
            _count("n", "messages behind measured_ms", nullable=True),
            _number(
                "expected_ms",
                "what the rate asked for should give, unshaped round trip excluded",
                nullable=True,
            ),
            _number("measured_ms", "median of the messages, unshaped round trip subtracted", nullable=True),
            _number("p95_ms", "95th percentile of the messages", nullable=True),
            _number(
                "ratio",
                "measured over expected; null for a message of one frame where that passes at once",
                nullable=True,
            ),
            _flag("ok", "whether it was within the tolerance", nullable=True),
        ),
    ),
    Table(
        "traffic",
        "what crossed one shaped link in one trial, counted by the kernel and added up from the records",
        (
            _text("trial", "the trial"),
            _DEVICE,
            _text("direction", "downlink (to the device) or uplink"),
            _count(
                "frame_bytes",
                "what the link's class counted, Ethernet headers included; null where nothing counts",
                "bytes",
                nullable=True,
            ),
            _count("frames", "the frames that it counted", nullable=True),
            _count("drops", "the frames that it dropped", nullable=True),
            _count("dispatch_bytes", "the sum over the trial's dispatches", "bytes"),
            _count("control_bytes", "handshakes and pings of the data plane", "bytes"),
            _count(
                "retransmitted_bytes",
                "payload that TCP says it sent again; null where the kernel did not tell",
                "bytes",
                nullable=True,
            ),
        ),
    ),
    Table(
        "throughput",
        "what one shaped link let through from one look at its counters to the next",
        (
            _number("t_s", "when the interval ended"),
            _text("trial", "the trial", nullable=True),
            _DEVICE,
            _text("direction", "downlink (to the device) or uplink"),
            _number("interval_s", "the time since the look before"),
            _count("frame_bytes", "what the link's class sent in it, Ethernet headers included", "bytes"),
            _count(
                "backlog_bytes",
                "what waited in the class at its end; null where nothing can tell",
                "bytes",
                nullable=True,
            ),
        ),
    ),
    Table(
        "radio",
        "one reading of a device's wireless interface, as its driver tells it",
        (
            _number("t_s", "when it was read"),
            _DEVICE,
            _text("interface", "the interface"),
            _number("signal_dbm", "the received signal", nullable=True),
            _number("noise_dbm", "the noise", nullable=True),
            _number("tx_mbit", "the physical rate from the device to the access point", nullable=True),
            _count("tx_mcs", "its modulation and coding scheme", nullable=True),
            _number("rx_mbit", "the physical rate from the access point to the device", nullable=True),
            _count("rx_mcs", "its modulation and coding scheme", nullable=True),
            _number("width_mhz", "the width of the channel", nullable=True),
        ),
    ),
    Table(
        "power",
        "one reading of one power rail",
        (
            _number("t_s", "when it was read"),
            _DEVICE,
            _text("rail", "the rail's label; which rails make the total stands in the manifest"),
            _number("mw", "the reading"),
        ),
    ),
    Table(
        "boards",
        "one value of jtop",
        (
            _number("t_s", "when it was read"),
            _DEVICE,
            _text("key", "what was read, with its unit at the end: temp_cpu_c, gpu_load_percent, ..."),
            _number("value", "the reading, in the unit that the key names", nullable=True),
        ),
    ),
)

TABLES: Mapping[str, Table] = MappingProxyType({table.name: table for table in _ALL})
"""Every table of a run by its name."""


def arrow_schema(table: Table) -> pa.Schema:
    """Return a table's pyarrow schema, with units and meanings as metadata of the fields."""
    import pyarrow as pa

    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    return pa.schema(
        [
            pa.field(
                column.name,
                types[column.kind],
                nullable=column.nullable,
                metadata={"unit": column.unit, "meaning": column.meaning},
            )
            for column in table.columns
        ],
        metadata={"testbed_table": table.name, "testbed_schema": str(SCHEMA_VERSION)},
    )


def markdown() -> str:
    """Return the tables as Markdown: the middle part of docs/records.md."""
    lines: list[str] = []
    for table in TABLES.values():
        lines += [f"### {table.name}", "", f"{table.meaning[0].upper()}{table.meaning[1:]}.", ""]
        lines += ["| column | type | unit | meaning |", "| --- | --- | --- | --- |"]
        for column in table.columns:
            kind = f"{column.kind} or null" if column.nullable else column.kind
            lines.append(f"| `{column.name}` | {kind} | {column.unit} | {column.meaning} |")
        lines.append("")
    return "\n".join(lines)
