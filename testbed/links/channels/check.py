"""What is wrong with a scenario, and where. Pure, but for the trace files that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from payloads.linkd.channel import MAX_BLOCKS
from payloads.linkd.model import MAX_RATE_MBIT, MIN_RATE_MBIT
from testbed.config.inventory import no_device
from testbed.config.model import Problem
from testbed.config.scenario import DEFAULT, ChannelDevice, ChannelSettings, LinkScenario
from testbed.config.yaml import Place
from testbed.errors import InputError
from testbed.links.channels.check_radio import has_place, radio_problems
from testbed.links.channels.traces import read_trace

__all__ = ["lacking_devices", "scenario_problems", "unknown_devices"]

_RADIO = ("shannon", "mcs")
#: Which models a setting belongs to; what is not listed belongs to all of them.
_MODELS = {
    **dict.fromkeys(
        (
            "bandwidth_mhz",
            "carrier_ghz",
            "path_loss",
            "path_loss_exponent",
            "reference_m",
            "reference_loss_db",
            "office",
            "base_station_m",
            "base_station_height_m",
            "device_height_m",
            "shadowing_db",
            "fading",
            "rician_k_db",
            "coherence_ms",
            "reciprocal",
            "base_station_dbm",
            "device_dbm",
            "noise_dbm_hz",
            "noise_figure_db",
        ),
        _RADIO,
    ),
    **dict.fromkeys(("table", "gap_db", "thresholds_db", "margin_db", "overhead"), ("mcs",)),
    **dict.fromkeys(("bin_ms", "opportunity_bytes"), ("trace",)),
}
_FILES = ("file", "downlink_file", "uplink_file")
_DEVICE_MODELS = {
    **dict.fromkeys(("distance_m", "position_m", "snr_db", "downlink_snr_db", "uplink_snr_db"), _RADIO),
    **dict.fromkeys(("file", "downlink_file", "uplink_file", "offset_s"), ("trace",)),
}


def scenario_problems(scenario: LinkScenario) -> Iterator[Problem]:
    """Yield what is wrong with a scenario whatever the lab; places start at the scenario."""
    yield from _jitter_problems(scenario)
    settings = scenario.channel
    if settings is None:
        yield from _fixed_problems(scenario)
        return
    for name, link in scenario.links.items():
        for key in ("downlink_mbit", "uplink_mbit"):
            if getattr(link, key) is not None:
                yield Problem(
                    ("links", name, key), "the scenario's channel makes the rates; leave this key out"
                )
    for problem in _channel_problems(settings):
        yield Problem(("channel", *problem.place), problem.text)


def _jitter_problems(scenario: LinkScenario) -> Iterator[Problem]:
    for name, link in scenario.links.items():
        delay, jitter, _loss = scenario.impairments(name)
        if jitter <= delay:
            continue
        if link.jitter_ms is not None:
            text = f"at most delay_ms = {delay:g} was expected, not {jitter:g}"
            yield Problem(("links", name, "jitter_ms"), text)
        elif link.delay_ms is not None:
            text = f"at least jitter_ms = {jitter:g} was expected, not {delay:g}"
            yield Problem(("links", name, "delay_ms"), text)


def _fixed_problems(scenario: LinkScenario) -> Iterator[Problem]:
    if "links" not in scenario.model_fields_set:
        yield Problem((), "`links` (fixed rates) or `channel` (rates over time) was expected")
    for name, link in scenario.links.items():
        for key in ("downlink_mbit", "uplink_mbit"):
            rate = getattr(link, key)
            if rate is not None and not MIN_RATE_MBIT <= rate <= MAX_RATE_MBIT:
                text = f"a rate from {MIN_RATE_MBIT:g} to {MAX_RATE_MBIT:g} Mbit/s was expected, not {rate:g}"
                yield Problem(("links", name, key), text)


def unknown_devices(scenario: LinkScenario, devices: Sequence[str]) -> Iterator[Problem]:
    """Yield the entries of a scenario for devices that the lab has not."""
    entries: list[Place] = [("links", name) for name in scenario.links]
    if scenario.channel is not None:
        entries += [("channel", "devices", name) for name in scenario.channel.devices]
    for place in entries:
        name = str(place[-1])
        if name != DEFAULT and name not in devices:
            yield Problem(place, no_device(name, devices))


def lacking_devices(scenario: LinkScenario, devices: Sequence[str]) -> Iterator[Problem]:
    """Yield what a scenario does not say about devices that take part."""
    settings = scenario.channel
    if settings is None:
        yield from _rate_problems(scenario, devices)
        return
    said = {name: settings.device(name) for name in devices}
    left = [name for name, device in said.items() if device is None]
    if left:
        yield Problem(("channel", "devices"), f"nothing about {', '.join(left)}, and no default")
    told, what = (
        (_has_trace, "which trace is theirs")
        if settings.model == "trace"
        else (has_place, "where they stand")
    )
    # Named entries are looked at without a lab; here it is those that have the default's words alone.
    bare = [name for name, one in said.items() if one and not told(one) and name not in settings.devices]
    if bare:
        yield Problem(("channel", "devices", DEFAULT), f"nothing says {what}: {', '.join(bare)}")
    yield from _share_problems(settings, devices)


def _rate_problems(scenario: LinkScenario, devices: Sequence[str]) -> Iterator[Problem]:
    left: list[str] = []
    for name in devices:
        said = [scenario.links[key] for key in (name, DEFAULT) if key in scenario.links]
        lacking = [
            key
            for key in ("downlink_mbit", "uplink_mbit")
            if not any(getattr(link, key) is not None for link in said)
        ]
        if len(lacking) == 2:
            left.append(name)
        elif lacking:
            entry = name if name in scenario.links else DEFAULT
            yield Problem(("links", entry, lacking[0]), "this key is missing: a number above 0")
    if left:
        yield Problem(("links",), f"no rates for {', '.join(left)}, and no default")


def _share_problems(settings: ChannelSettings, devices: Sequence[str]) -> Iterator[Problem]:
    said = [settings.device(name) for name in devices]
    shares = [one.share for one in said if one is not None and one.share is not None]
    total = sum(shares)
    if total > 1 + 1e-9:
        yield Problem(("channel", "devices"), f"the shares add up to {total:.6g}; at most 1 was expected")
    elif shares and len(shares) < len(devices) and total > 1 - 1e-9:
        left = [name for name, one in zip(devices, said, strict=True) if one is None or one.share is None]
        yield Problem(("channel", "devices"), f"the shares leave nothing of the band for {', '.join(left)}")


def _channel_problems(settings: ChannelSettings) -> Iterator[Problem]:
    given = settings.model_fields_set
    for key, models in _MODELS.items():
        if key in given and settings.model not in models:
            yield Problem((key,), _belongs(models, settings.model))
    if not settings.devices:
        yield Problem(("devices",), "at least one entry was expected, such as `default`")
    for name, device in settings.devices.items():
        for key in sorted(device.model_fields_set):
            models = _DEVICE_MODELS.get(key, (settings.model,))
            if settings.model not in models:
                yield Problem(("devices", name, key), _belongs(models, settings.model))
    if settings.min_mbit < MIN_RATE_MBIT:
        yield Problem(("min_mbit",), f"at least {MIN_RATE_MBIT:g} was expected, not {settings.min_mbit:g}")
    if settings.max_mbit > MAX_RATE_MBIT:
        yield Problem(("max_mbit",), f"at most {MAX_RATE_MBIT:g} was expected, not {settings.max_mbit:g}")
    if settings.max_mbit < settings.min_mbit:
        yield Problem(
            ("max_mbit",),
            f"at least min_mbit = {settings.min_mbit:g} was expected, not {settings.max_mbit:g}",
        )
    block_ms = settings.bin_ms if settings.model == "trace" else settings.coherence_ms
    block_key = "bin_ms" if settings.model == "trace" else "coherence_ms"
    if (settings.duration_s or 0.0) * 1e3 / block_ms > MAX_BLOCKS:
        yield Problem((block_key,), f"more than {MAX_BLOCKS} blocks in {settings.duration_s:g} s")
    if 0 < (settings.duration_s or 1.0) < 0.001:
        yield Problem(("duration_s",), f"at least 0.001 was expected, not {settings.duration_s:g}")
    if settings.model == "trace":
        yield from _trace_problems(settings)
    else:
        yield from radio_problems(settings)


def _belongs(models: Sequence[str], model: str) -> str:
    return f"this key belongs to the model{'s' if len(models) > 1 else ''} {' and '.join(models)}, not to {model}"


def _trace_problems(settings: ChannelSettings) -> Iterator[Problem]:
    default = settings.devices.get(DEFAULT)
    for name, device in settings.devices.items():
        place = ("devices", name)
        given = {key: getattr(device, key) for key in _FILES if getattr(device, key) is not None}
        if not given and name != DEFAULT and (default is None or not _has_trace(default)):
            yield Problem(place, "no trace: file (or downlink_file and uplink_file) was expected")
        if "file" in given and len(given) > 1:
            yield Problem(place, "file for both directions, or downlink_file and uplink_file, was expected")
        elif len(given) == 1 and "file" not in given:
            other = "uplink_file" if "downlink_file" in given else "downlink_file"
            yield Problem((*place, other), "this key is missing: a path")
        for key, path in given.items():
            yield from _file_problems(settings, (*place, key), path)


def _file_problems(settings: ChannelSettings, place: Place, path: Path) -> Iterator[Problem]:
    try:
        trace = read_trace(path, bin_ms=settings.bin_ms, opportunity_bytes=settings.opportunity_bytes)
    except InputError as error:
        yield Problem(place, error.message)
        return
    if settings.duration_s is None and trace.duration_s * 1e3 / settings.bin_ms > MAX_BLOCKS:
        yield Problem(("bin_ms",), f"more than {MAX_BLOCKS} blocks in the {trace.duration_s:g} s of {path}")


def _has_trace(device: ChannelDevice) -> bool:
    return any(getattr(device, key) is not None for key in _FILES)
