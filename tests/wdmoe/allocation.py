"""Problems of bandwidth allocation, and a general solver to compare with."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy import optimize

from payloads.linkd.channel import Rule
from payloads.station.link_state import LinkState
from payloads.wdmoe.latency import Demand

#: Limits that nothing in these problems meets, and limits that much does.
WIDE = {"min_mbit": 0.01, "max_mbit": 10_000.0}
TIGHT = {"min_mbit": 0.5, "max_mbit": 20.0}
#: A highest rate that many links meet, and a lowest that none does: convex, as without limits.
CAPPED = {"min_mbit": 0.01, "max_mbit": 20.0}
TABLE = {
    "thresholds_db": tuple(np.linspace(-6, 22, 15).tolist()),
    "efficiencies": tuple(np.linspace(0.15, 5.5, 15).tolist()),
}


def rule_of(kind, limits=WIDE):
    return Rule(kind, bandwidth_mhz=20.0, **(TABLE if kind == "table" else {}), **limits)


def demand_of(generator, devices, idle=0.2):
    loaded = generator.random(devices) >= idle
    loaded[generator.integers(devices)] = True
    fixed_s = generator.uniform(0.1, 5, devices) * 1e-3
    bits = 10 ** generator.uniform(4, 6.5, (2, devices))
    return Demand(fixed_s * loaded, bits[0] * loaded, bits[1] * loaded, loaded)


def street_of(generator, devices):
    """Return links as those of a street: Shannon's rule under Rayleigh fading, where some links meet a limit."""
    rule = Rule("shannon", bandwidth_mhz=20.0, scale=0.35, min_mbit=0.5, max_mbit=20.0)
    mean = 10 ** generator.uniform(0.5, 3.5, (2, devices))
    return LinkState(
        rule, mean * generator.exponential(1.0, (2, devices)), np.full((2, devices), 1 / devices)
    )


def links_of(generator, devices, rule):
    states = 10 ** generator.uniform(1, 3, (2, devices))
    return LinkState(rule, states, np.full((2, devices), 1 / devices))


@st.composite
def problems(draw, kinds=("linear", "shannon"), limits=(WIDE,), most=12, layers=1):
    """Draw demands, links and a floor; seeds keep shrinking simple and numbers plausible."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    devices = draw(st.integers(1, most))
    rule = rule_of(draw(st.sampled_from(kinds)), draw(st.sampled_from(limits)))
    demands = [demand_of(generator, devices) for _ in range(layers)]
    return demands, links_of(generator, devices, rule), draw(st.sampled_from([0.0, 0.01, 0.3]))


def latency_s(demand, links, shares):
    """Return the layer's attention waiting latency with shares."""
    rates = links.with_shares(shares).rates_mbit() * 1e6
    times = demand.fixed_s + demand.downlink_bits / rates[0] + demand.uplink_bits / rates[1]
    return float(np.where(demand.loaded, times, 0.0).max())


def total_s(demands, links, shares):
    return sum(latency_s(demand, links, shares) for demand in demands)


def random_shares(generator, devices, floor, directions):
    """Return shares that an allocator might have chosen as well."""
    kept = min(floor, 0.5 / devices)
    rows = generator.dirichlet(np.full(devices, generator.choice([0.5, 2.0, 20.0])), 2)
    shares = kept + (1 - kept * devices) * rows
    return shares[[0, 0]] if directions == "same" else shares


def slsqp(demands, links, floor, directions, start=None):
    """Return the shares that a general convex solver finds for the epigraph form."""
    devices, layers = links.states.shape[1], len(demands)
    rows = 1 if directions == "same" else 2
    kept = min(floor, 0.5 / devices)
    linear = links.rule.kind == "linear"
    width = 1.0 if linear else links.rule.bandwidth_mhz
    bits = np.array([[d.downlink_bits, d.uplink_bits] for d in demands]) * 1e-6  # (I, 2, D)
    fixed_s = np.array([d.fixed_s for d in demands])
    loaded = np.array([d.loaded for d in demands])

    def rates(shares):
        both = np.repeat(shares, 2, axis=0) if rows == 1 else shares
        if linear:
            return links.states * both, links.states
        snr = links.states / (width * both)
        rate = width * both * np.log2(1 + snr) * links.rule.scale
        return rate, width * links.rule.scale / np.log(2) * (np.log1p(snr) - snr / (1 + snr))

    begun = np.full((rows, devices), 1 / devices) if start is None else start[:rows]
    unit = float(np.where(loaded, fixed_s + (bits / rates(begun)[0]).sum(axis=1), 0).max())

    def times(x):
        return (fixed_s + (bits / rates(x[: rows * devices].reshape(rows, devices))[0]).sum(axis=1)) / unit

    def slack(x):
        return (x[rows * devices :, None] - times(x))[loaded]

    def slack_jacobian(x):
        rate, bend = rates(x[: rows * devices].reshape(rows, devices))
        slopes = bits / rate**2 * bend / unit  # (I, 2, D), minus the derivative of the times
        slopes = slopes.sum(axis=1, keepdims=True) if rows == 1 else slopes
        jacobian = np.zeros((layers, devices, rows * devices + layers))
        for layer in range(layers):
            for row in range(rows):
                jacobian[layer, range(devices), row * devices + np.arange(devices)] = slopes[layer, row]
            jacobian[layer, :, rows * devices + layer] = 1.0
        return jacobian[loaded]

    sums = np.zeros((rows, rows * devices + layers))
    for row in range(rows):
        sums[row, row * devices : (row + 1) * devices] = 1.0
    first = np.concatenate([begun.ravel(), np.where(loaded, times(begun.ravel()), 0).max(axis=1)])
    cost = np.concatenate([np.zeros(rows * devices), np.ones(layers)])
    found = optimize.minimize(
        lambda x: float(cost @ x),
        first,
        jac=lambda x: cost,
        method="SLSQP",
        bounds=[(max(kept, 1e-9), 1.0)] * (rows * devices) + [(0.0, None)] * layers,
        constraints=[
            {"type": "ineq", "fun": slack, "jac": slack_jacobian},
            {"type": "eq", "fun": lambda x: sums @ x - 1.0, "jac": lambda x: sums},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    shares = found.x[: rows * devices].reshape(rows, devices)
    shares = np.maximum(shares, 0) / np.maximum(shares, 0).sum(axis=1, keepdims=True)
    return np.repeat(shares, 2, axis=0) if rows == 1 else shares
