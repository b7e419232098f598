"""The tables of what is measured of the lab itself: links, power, boards. See :mod:`testbed.records.schema`."""

from __future__ import annotations

from testbed.records.columns import Table, count, flag, number, text

__all__ = ["DEVICE", "LAB_TABLES"]

DEVICE = text("device", "the device's name in the inventory")

LAB_TABLES = (
    Table(
        "links",
        "one probe of a link with messages of one size; a row without message_bytes is a rate that came into force",
        (
            number("t_s", "when it was set or measured"),
            text("trial", "the trial that it was set or verified for", nullable=True),
            text("scenario", "the scenario that was in force", nullable=True),
            DEVICE,
            text("direction", "downlink (to the device) or uplink"),
            text("backend", "what shapes the link, none where nothing does", nullable=True),
            text(
                "cause",
                "why the rate came into force: set, block (of a channel), allocate (of a policy), rerate or hold; "
                "null for a probe",
                nullable=True,
            ),
            text("why", "what the one who asked for it said, such as the layer", nullable=True),
            text(
                "state",
                "a probe: idle, or busy (all other devices at full load in both directions)",
                nullable=True,
            ),
            number(
                "asked_mbit",
                "the rate asked for, frames included; null where the direction was left alone",
                nullable=True,
            ),
            number("delay_ms", "the one-way delay asked for", nullable=True),
            number("loss_percent", "how many frames are to be lost; null for probes", "%", nullable=True),
            count("message_bytes", "size of a message", "bytes", nullable=True),
            count("n", "messages behind measured_ms", nullable=True),
            number(
                "expected_ms",
                "what the rate asked for should give, unshaped round trip excluded",
                nullable=True,
            ),
            number("measured_ms", "median of the messages, unshaped round trip subtracted", nullable=True),
            number("p95_ms", "95th percentile of the messages", nullable=True),
            number(
                "ratio",
                "measured over expected; null for a message of one frame where that passes at once",
                nullable=True,
            ),
            flag("ok", "whether it was within the tolerance", nullable=True),
        ),
    ),
    Table(
        "traffic",
        "what crossed one shaped link in one trial, counted by the kernel and added up from the records",
        (
            text("trial", "the trial"),
            DEVICE,
            text("direction", "downlink (to the device) or uplink"),
            count(
                "frame_bytes",
                "what the link's class counted, Ethernet headers included; null where nothing counts",
                "bytes",
                nullable=True,
            ),
            count("frames", "the frames that it counted", nullable=True),
            count("drops", "the frames that it dropped", nullable=True),
            count(
                "dispatch_bytes",
                "what the trial's dispatches took, or the frames of a broadcast and their answers",
                "bytes",
            ),
            count("control_bytes", "handshakes and pings of the data plane", "bytes"),
            count(
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
            number("t_s", "when the interval ended"),
            text("trial", "the trial", nullable=True),
            DEVICE,
            text("direction", "downlink (to the device) or uplink"),
            number("interval_s", "the time since the look before"),
            count("frame_bytes", "what the link's class sent in it, Ethernet headers included", "bytes"),
            count(
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
            number("t_s", "when it was read"),
            DEVICE,
            text("interface", "the interface"),
            number("signal_dbm", "the received signal", nullable=True),
            number("noise_dbm", "the noise", nullable=True),
            number("tx_mbit", "the physical rate from the device to the access point", nullable=True),
            count("tx_mcs", "its modulation and coding scheme", nullable=True),
            number("rx_mbit", "the physical rate from the access point to the device", nullable=True),
            count("rx_mcs", "its modulation and coding scheme", nullable=True),
            number("width_mhz", "the width of the channel", nullable=True),
        ),
    ),
    Table(
        "power",
        "one reading of one power rail",
        (
            number("t_s", "when it was read"),
            DEVICE,
            text("rail", "the rail's label; which rails make the total stands in the manifest"),
            number("mw", "the reading"),
        ),
    ),
    Table(
        "boards",
        "one value of jtop",
        (
            number("t_s", "when it was read"),
            DEVICE,
            text("key", "what was read, with its unit at the end: temp_cpu_c, gpu_load_percent, ..."),
            number("value", "the reading, in the unit that the key names", nullable=True),
        ),
    ),
)
