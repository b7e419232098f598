"""`testbed calibrate`: a latency model from a measured run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli.common import DEFAULT_RESULTS, JsonOption, ResultsOption, print_json, print_table

if TYPE_CHECKING:
    from testbed.simulate.calibrate import Calibration, Number, Residual

__all__ = ["calibrate"]


def calibrate(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's name or folder, or `latest`.")
    ] = "latest",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The file; without it, calibration.json in the run's folder.", dir_okay=False
        ),
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Fit the latency model to what a run measured; a campaign names the file as `latency: {calibration: FILE}`."""
    from testbed.records.listing import find_run

    folder = find_run(results, run)

    from testbed.records.run import load_run
    from testbed.simulate.assumed import assumed_of_run
    from testbed.simulate.calibrate import calibrate as fit
    from testbed.simulate.observed import observe

    loaded = load_run(folder)
    observed = observe(loaded)
    calibration = fit(observed, assumed_of_run(loaded.manifest, observed.row_bytes))
    path = out or folder / "calibration.json"
    _write(path, calibration)
    if as_json:
        print_json({"file": str(path), **calibration.as_json()})
        return
    print_table(
        [
            ("where", "number", "value", "95 % interval", "n", "assumed", ""),
            *map(_number, calibration.numbers),
        ],
        keys=2,
    )
    typer.echo("")
    heading = ("prediction of", "n", "median error", "p90", "bias", "as assumed")
    print_table([heading, *map(_residual, calibration.residuals)])
    for note in calibration.notes:
        typer.echo(f"note: {note}")
    typer.echo(str(path))


def _write(path: Path, calibration: Calibration) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(calibration.as_json(), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _number(number: Number) -> tuple[str, ...]:
    from testbed.report.numbers import decimals_of
    from testbed.report.stats import Interval

    found, value, interval = number.estimate, _shown(number.value), ""
    if found is not None and number.value is not None:
        decimals = decimals_of(Interval(number.value, found.low, found.high, found.n))
        value = _rounded(number.value, decimals)
        if found.low == found.low:
            interval = f"{_rounded(found.low, decimals)} to {_rounded(found.high, decimals)}"
    return (
        number.where,
        number.name,
        value,
        interval,
        str(found.n) if found else "",
        _shown(number.assumed),
        f"not identified: {number.note}" if found is None else number.note,
    )


def _residual(residual: Residual) -> tuple[str, ...]:
    assumed = "" if residual.assumed is None else f"{100 * residual.assumed:.1f} %"
    shares = (residual.median, residual.p90, residual.bias)
    return (residual.what, str(residual.n), *(f"{100 * share:.1f} %" for share in shares), assumed)


def _rounded(value: float, decimals: int) -> str:
    """Return a number with so many decimals, which may be negative; with an exponent where it is a large one."""
    from testbed.report.numbers import plain

    if abs(value) < 1e6:
        return plain(value, decimals)
    digits = math.floor(math.log10(abs(value))) + decimals
    return f"{value:.{min(max(0, digits), 3)}e}"


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
