#!/usr/bin/env python3
"""Measures when transport blocks are lost: testbed/semcast/link_level.json, by coding and decoding random blocks.

For each modulation and coding scheme and some sizes of code blocks, blocks are sent over white Gaussian noise at SNRs
around the slope, and ``BLER = Q((snr - middle) / spread)`` is fitted to what is lost by maximum likelihood. Schemes
that the file holds already are left alone. About ten minutes on one core; needs the extra ``link-level``:

    .venv/bin/python scripts/measure_mcs.py
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_ndtr

from testbed.semcast import mcs as table
from testbed.semcast.link_level import Code, block_errors, block_size, code_of

FILE = Path(table.__file__).with_name(table.MEASURED)

#: Wanted sizes of code blocks in bits, how many blocks each point gets, and how wide the slope is about.
SIZES = {40: (80, 1.2), 100: (60, 1.0), 300: (40, 0.6), 1024: (20, 0.35), 3800: (10, 0.25), 8300: (6, 0.2)}
ROUNDS, OFFSETS = 3, (-1.5, -0.5, 0.5, 1.5)


def main() -> None:
    """Measure what is missing and write the file after each scheme."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--again", action="store_true", help="measure what the file holds as well")
    parser.add_argument("--only", type=int, nargs="*", metavar="NUMBER", help="only these schemes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = options.only or [scheme.number for scheme in table.MCS_TABLE]
    held = _held() if FILE.exists() else {}
    rows = {number: row for number, row in held.items() if not (options.again and number in wanted)}
    for scheme in table.MCS_TABLE:
        if scheme.repeats > 1 or scheme.number in rows or scheme.number not in wanted:
            continue
        sizes = [found for bits in SIZES if (found := _measured(scheme, bits)) is not None]
        rows[scheme.number] = {"mcs": scheme.number, "sizes": sizes}
        ordered = [rows[number] for number in sorted(rows)]
        lines = ",\n".join("  " + json.dumps(row) for row in ordered)
        about = "fits of BLER = Q((snr_db - middle_db) / spread_db), by scripts/measure_mcs.py"
        FILE.write_text(f'{{"about": "{about}",\n "schemes": [\n{lines}\n]}}\n', encoding="utf-8")
        print(json.dumps(rows[scheme.number]), flush=True)


def _held() -> dict[int, dict[str, object]]:
    return {row["mcs"]: row for row in json.loads(FILE.read_text(encoding="utf-8"))["schemes"]}


def _measured(scheme: table.Mcs, bits: int) -> dict[str, object] | None:
    """Return the fit for one size; None where no single code block has it."""
    code = _single(scheme, bits)
    if code is None:
        return None
    blocks, spread = SIZES[bits]
    middle = table.limit_db(scheme.efficiency) + 1.5
    rng = np.random.default_rng([scheme.number, bits])
    points: list[tuple[float, int, int]] = []
    for _ in range(ROUNDS):
        for offset in OFFSETS:
            snr_db = middle + offset * spread
            points.append((snr_db, block_errors(code, snr_db, blocks, rng), blocks))
        middle, spread = fit(points, middle, spread)
    return {
        "code_block_bits": code.size.code_block_bits,
        "coded_bits": code.size.coded_bits,
        "middle_db": round(middle, 3),
        "spread_db": round(spread, 3),
        "blocks": sum(count for _, _, count in points),
    }


def _single(scheme: table.Mcs, bits: int) -> Code | None:
    """Return a code with one code block of about so many bits, or the longest that is one block."""
    symbols = math.ceil(bits / scheme.efficiency) + 1
    for count in range(symbols, symbols // 2, -max(1, symbols // 200)):
        size = block_size(scheme, count)
        if size is not None and size.code_blocks == 1:
            near = size.code_block_bits > 0.7 * bits
            return code_of(scheme, count) if near else None
    return None


def fit(points: list[tuple[float, int, int]], middle: float, spread: float) -> tuple[float, float]:
    """Return the slope of the greatest likelihood for points (SNR in dB, blocks lost, blocks).

    A weak pull of the spread towards what it was keeps it finite where no point lies on the slope.
    """
    snr, lost, count = (np.array(column, dtype=float) for column in zip(*points, strict=True))

    def cost(values: np.ndarray) -> float:
        z = (snr - values[0]) / math.exp(values[1])
        likelihood = lost * log_ndtr(-z) + (count - lost) * log_ndtr(z)
        return float(-likelihood.sum() + 2 * (values[1] - math.log(spread)) ** 2)

    found = minimize(cost, [middle, math.log(spread)], method="Nelder-Mead")
    return float(found.x[0]), float(math.exp(found.x[1]))


if __name__ == "__main__":
    main()
