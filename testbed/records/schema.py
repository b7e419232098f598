"""The tables of a run, declared once: the Parquet schema, the CSV headers and docs/records.md all follow from here.

Every time column is named ``t_*_s`` and holds seconds since the start of the run on the base station's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from testbed.records.columns import Column, Table, count, flag, number, text
from testbed.records.schema_broadcast import BROADCAST_TABLES
from testbed.records.schema_lab import DEVICE, LAB_TABLES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SCHEMA_VERSION", "TABLES", "Column", "Table", "arrow_schema", "markdown"]

SCHEMA_VERSION = 5

_TRIAL = text("trial", "the trial: t001 and so on, in the order of running")
_REQUEST = text("request", "the prompt that was answered")
_ITERATION = count(
    "iteration",
    "the pass through the model, from 0 in a trial: one decoding step of all requests, or a piece of one prompt",
    nullable=True,
)

_ALL = (
    Table(
        "trials",
        "one policy in one scenario with one repeat; the row is written last, so a trial is whole or not there",
        (
            _TRIAL,
            count("order", "place in the interleaved order of running"),
            text("policy", "the policy's name"),
            text("scenario", "the link scenario's name"),
            count("repeat", "the repeat, from 0: equal repeats of two policies are compared as a pair"),
            count("concurrency", "how many requests were answered at once, at most", nullable=True),
            text("state", "completed or failed"),
            number("t_start_s", "when the trial began"),
            number("t_end_s", "when the trial ended"),
            flag("links_ok", "whether every link was within its tolerance when last verified", nullable=True),
            text(
                "links_error",
                "what else was wrong with its links: a line whose process ended, a change that came to nothing",
                nullable=True,
            ),
            text("error", "why it failed", nullable=True),
        ),
    ),
    Table(
        "requests",
        "one prompt answered in one trial",
        (
            _TRIAL,
            _REQUEST,
            flag("warmup", "a warm-up request: recorded, and left out of every figure of the report"),
            count("prompt_tokens", "tokens of the prompt", "tokens"),
            count("output_tokens", "tokens that were generated", "tokens"),
            number("t_start_s", "when the base station was asked"),
            number(
                "queued_ms", "how long it waited for a place among those that were answered", nullable=True
            ),
            number("ttft_ms", "time to the first token; null where none came", nullable=True),
            number("e2el_ms", "time to the last token, or to the request's end where none came"),
            text(
                "finish",
                "how it ended: stop, length, deadline, abandoned or failed; null in runs of before this was recorded",
                nullable=True,
            ),
            number(
                "client_ttft_ms",
                "time to the first token as a client of the HTTP interface saw it; null where there was none",
                nullable=True,
            ),
            number("client_e2el_ms", "the same to the last token", nullable=True),
            text("text", "the text that was generated", nullable=True),
        ),
    ),
    Table(
        "tokens",
        "one generated token",
        (
            _TRIAL,
            _REQUEST,
            count("position", "place in the answer, from 0; position 0 includes the reading of the prompt"),
            _ITERATION,
            count("token", "the token's number in the vocabulary"),
            number("t_s", "when the token was there"),
            number("duration_ms", "position 0: ttft; else the time since the token before (itl)"),
            number("bs_ms", "the part of it that the base station itself computed", nullable=True),
            number(
                "bound_ms",
                "what no expert selection within the policy's budget could have gone below, by its latency model",
                nullable=True,
            ),
            number("nll", "negative log-likelihood of the token", "nat", nullable=True),
            count(
                "wanted",
                "pairs of a token and an expert, over all layers, that the policy sent",
                nullable=True,
            ),
            count(
                "lost", "of these, the pairs that it did not get, as nobody could serve them", nullable=True
            ),
            count(
                "rerouted",
                "of these, the pairs that another device served than the one first asked",
                nullable=True,
            ),
        ),
    ),
    Table(
        "dispatches",
        "one layer's tokens sent to one device, and their answer; a quality pass has a trial such as quality-POLICY",
        (
            _TRIAL,
            text(
                "request", "the prompt that was answered; null where several were in the pass", nullable=True
            ),
            count("step", "the position of the token that was being made; null likewise", nullable=True),
            count("layer", "the MoE layer, from 0"),
            DEVICE,
            _ITERATION,
            count("batch", "how many requests were in that pass", nullable=True),
            count("tokens", "rows of hidden state that were sent", "tokens"),
            count("assignments", "pairs of a token and an expert that the device computed"),
            count(
                "dropped",
                "pairs of token and expert that the policy left out here; a device left with none has no row",
            ),
            count(
                "bytes_out",
                "to the device: whole frames, header and payload, in their TLS records if any",
                "bytes",
            ),
            count("bytes_back", "from the device: whole frames likewise", "bytes"),
            number("t_send_s", "base station: before the first byte is sent"),
            number("t_first_s", "base station: the first byte of the answer is there", nullable=True),
            number("t_done_s", "base station: the last byte of the answer is there"),
            number("t_received_s", "device: the last byte of the tokens is there", nullable=True),
            number("t_started_s", "device: the computation begins", nullable=True),
            number("t_computed_s", "device: the computation is done", nullable=True),
            number("t_replied_s", "device: the answer begins to leave", nullable=True),
            number("compute_ms", "device: time in the experts", nullable=True),
            number(
                "predicted_ms", "what the policy's latency model expected for this dispatch", nullable=True
            ),
        ),
    ),
    Table(
        "events",
        "a device that was lost, late or back again, and what was done about it",
        (
            number("t_s", "when it was seen"),
            _TRIAL,
            text(
                "request",
                "the request that was being answered; null where there were several or none",
                nullable=True,
            ),
            count("step", "the position of the token that was being made", nullable=True),
            count("layer", "the MoE layer, from 0", nullable=True),
            text(
                "device",
                "the device's name in the inventory; null where it was none in particular",
                nullable=True,
            ),
            text(
                "event",
                "lost (its connection broke), deadline (it was late), refused (it answered with an error), "
                "rerouted (another holder was asked), dropped (the token went without), waited (for it to come back), "
                "unfit (it is there again, and not as it was), readmitted, or failed (what was being answered)",
            ),
            text("detail", "more about it, for people", nullable=True),
        ),
    ),
    Table(
        "selection",
        "what a policy made of the router's choice for one device in one layer: sums over a trial's measured requests",
        (
            _TRIAL,
            text("stage", "prompt (token step 0), or decode (one token at a time)"),
            count("layer", "the MoE layer, from 0"),
            DEVICE,
            count("pairs", "pairs of a token and an expert that were sent to it"),
            count("dropped", "pairs that the router wanted of it and that it did not get"),
            count("moved_in", "of the pairs sent, those that took the place of one that was dropped"),
            number("mass", "gate mass sent: each token's experts share a mass of 1, by the router's scores"),
            number("dropped_mass", "gate mass of the pairs that it did not get"),
        ),
    ),
    Table(
        "routing",
        "how often the router itself asked for one expert: sums over a trial's measured requests",
        (
            _TRIAL,
            text("stage", "prompt (token step 0), or decode (one token at a time)"),
            count("layer", "the MoE layer, from 0"),
            count("expert", "the expert, from 0"),
            count("pairs", "tokens that chose it"),
        ),
    ),
    Table(
        "clocks",
        "one estimate of a device's clock",
        (
            number("t_s", "when it was estimated"),
            DEVICE,
            number(
                "offset_s",
                "what is added to the device's monotonic clock to give the base station's unix seconds",
            ),
            number("rtt_ms", "round trip of the ping behind the estimate; the error is at most half of it"),
        ),
    ),
    Table(
        "quality",
        "one window of held-out text read under one policy",
        (
            text("policy", "the policy's name"),
            text(
                "scenario",
                "the scenario whose links the selection followed; null where it does not look at links",
                nullable=True,
            ),
            text("text", "the text's name"),
            count("window", "the window's number within its text"),
            count("tokens", "tokens that were predicted", "tokens"),
            number("nll_sum", "sum of their negative log-likelihoods", "nat"),
            number(
                "kl_sum",
                "sum over them of the Kullback-Leibler divergence of the policy's prediction from the model's own",
                "nat",
                nullable=True,
            ),
            count(
                "agree", "how many of them have the model's own most likely token", "tokens", nullable=True
            ),
            number("mass_kept", "the share of the gate mass that was sent, from 0 to 1", nullable=True),
        ),
    ),
    Table(
        "choices",
        "one multiple-choice question answered under one policy, by the likelihood of each answer",
        (
            text("policy", "the policy's name"),
            text("scenario", "as in quality", nullable=True),
            text("set", "the name of the set of questions"),
            text("item", "the question's name within its set"),
            count("choices", "how many answers there are to choose from"),
            count("answer", "the right one, from 0"),
            count("chosen", "the most likely one, from 0"),
            number("nll_answer", "negative log-likelihood of the right one, a token", "nat"),
            number("nll_chosen", "negative log-likelihood of the most likely one, a token", "nat"),
        ),
    ),
    *BROADCAST_TABLES,
    *LAB_TABLES,
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
