"""What is wrong with the settings of a channel of the models ``shannon`` and ``mcs``. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from testbed.config.model import Problem
from testbed.config.scenario import DEFAULT, ChannelDevice, ChannelSettings
from testbed.links.channels.budget import distance_m, path_loss_of
from testbed.links.channels.tables import CQI_TABLES, WIFI_6, WIFI_6_SUBCARRIERS

__all__ = ["has_place", "radio_problems"]

_PATH_LOSSES = {
    **dict.fromkeys(("path_loss_exponent", "reference_m", "reference_loss_db"), ("log-distance",)),
    "office": ("inh",),
}
_PLACES = "distance_m, position_m or snr_db (or downlink_snr_db and uplink_snr_db)"


def radio_problems(settings: ChannelSettings) -> Iterator[Problem]:
    """Yield what is wrong; places start at the channel."""
    given = settings.model_fields_set
    if settings.bandwidth_mhz is None:
        yield Problem(("bandwidth_mhz",), "this key is missing: a number above 0")
    if settings.fading == "rician" and settings.rician_k_db is None:
        yield Problem(("rician_k_db",), "this key is missing: a number; 6 is a moderate direct path")
    if "rician_k_db" in given and settings.fading != "rician":
        yield Problem(("rician_k_db",), f"this key belongs to the fading rician, not to {settings.fading}")
    for key, families in _PATH_LOSSES.items():
        if key in given and settings.path_loss not in families:
            other = settings.path_loss or "a channel without one"
            yield Problem(
                (key,), f"this key belongs to the path loss {' and '.join(families)}, not to {other}"
            )
    if settings.path_loss == "log-distance" and settings.path_loss_exponent is None:
        yield Problem(("path_loss_exponent",), "this key is missing: a number above 0; free space has 2")
    if settings.model == "mcs":
        yield from _table_problems(settings)
    yield from _place_problems(settings)
    yield from _distance_problems(settings)


def _table_problems(settings: ChannelSettings) -> Iterator[Problem]:
    if settings.table is None:
        yield Problem(("table",), "this key is missing: `cqi-1`, `cqi-2` or `wifi-6`")
        return
    rows = len(WIFI_6 if settings.table == "wifi-6" else CQI_TABLES[settings.table])
    if settings.table == "wifi-6":
        if settings.bandwidth_mhz is not None and settings.bandwidth_mhz not in WIFI_6_SUBCARRIERS:
            widths = ", ".join(map(str, WIFI_6_SUBCARRIERS))
            text = f"a channel of wifi-6 is {widths} MHz wide, not {settings.bandwidth_mhz:g}"
            yield Problem(("bandwidth_mhz",), text)
        if "gap_db" in settings.model_fields_set:
            yield Problem(("gap_db",), "this key belongs to the tables cqi-1 and cqi-2, not to wifi-6")
    thresholds = settings.thresholds_db
    if thresholds is not None:
        if len(thresholds) != rows:
            text = (
                f"{rows} numbers were expected, one for each row of {settings.table}, not {len(thresholds)}"
            )
            yield Problem(("thresholds_db",), text)
        elif any(a >= b for a, b in pairwise(thresholds)):
            yield Problem(("thresholds_db",), "rising numbers were expected")
        if "gap_db" in settings.model_fields_set:
            yield Problem(("gap_db",), "the gap has no effect beside thresholds_db; leave one of them out")


def has_place(device: ChannelDevice) -> bool:
    """Return whether an entry says where the device stands."""
    return bool(_kinds(device))


def _kinds(device: ChannelDevice) -> list[str]:
    """Return by what an entry says where the device stands; one of them is right."""
    kinds = [key for key in ("distance_m", "position_m") if getattr(device, key) is not None]
    if any(value is not None for value in (device.snr_db, device.downlink_snr_db, device.uplink_snr_db)):
        kinds.append("an SNR")
    return kinds


def _place_problems(settings: ChannelSettings) -> Iterator[Problem]:
    default = settings.devices.get(DEFAULT)
    for name, device in settings.devices.items():
        kinds = _kinds(device)
        place = ("devices", name)
        if len(kinds) > 1:
            yield Problem(
                place, f"one of distance_m, position_m and an SNR was expected, not {' and '.join(kinds)}"
            )
        elif not kinds and name != DEFAULT and (default is None or not has_place(default)):
            yield Problem(place, f"nothing says where the device stands: {_PLACES} was expected")
        elif kinds == ["an SNR"] and device.snr_db is None:
            for key in ("downlink_snr_db", "uplink_snr_db"):
                if getattr(device, key) is None:
                    yield Problem(
                        (*place, key), "this key is missing: a number, or snr_db for both directions"
                    )


def _distance_problems(settings: ChannelSettings) -> Iterator[Problem]:
    """Yield what a path loss lacks, and what it is not for."""
    far = {
        name: key
        for name, device in settings.devices.items()
        for key in ("distance_m", "position_m")
        if getattr(device, key) is not None
    }
    if not far:
        return
    lacking = [key for key in ("carrier_ghz", "path_loss") if getattr(settings, key) is None]
    for key in lacking:
        name = next(iter(far))
        yield Problem((key,), f"this key is missing: devices.{name} has a {far[name].removesuffix('_m')}")
    if lacking or (settings.path_loss == "log-distance" and settings.path_loss_exponent is None):
        return
    path_loss = path_loss_of(settings)
    wrong = [Problem((key,), text) for key, text in path_loss.setting_problems()]
    yield from wrong
    for name, key in () if wrong else far.items():
        text = path_loss.distance_problem(distance_m(settings, settings.devices[name]))
        if text:
            yield Problem(("devices", name, key), text)
