"""An interior point method for the epigraph form: the least sum of maxima over shares of a band. Pure.

Over shares s, and T_i for layer i: minimise the sum of T_i, where no device k of layer i takes longer than T_i. The
shares of different devices meet only in the bands' sums and in the T_i, so that a Newton step costs layers x devices x
the smaller of both. The method is primal-dual and stays inside; it stops when the duality gap, which is computed from
the multipliers and not assumed, is small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional, Tuple

import numpy as np

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Mask = NDArray[bool_]

__all__ = ["GAP", "Epigraph", "Solved", "solve"]

#: The duality gap that is come to, as a part of the objective.
GAP = 1e-7
_STEPS = 150
#: A step may take a layer's nearest slack down to this part of itself; the T_i then make room, all of them together
#: by at most so much of the gap.
_KEPT_SLACK = 0.1
_GIVEN_WAY = 0.2
_LEAST_SLACK = 1e-15
#: Up to so many shares, or as many as there are layers, a dense system is solved in the shares, beyond it in the T_i,
#: which is cheaper and loses digits: where that comes to a halt the dense one goes on, up to the second number.
_DENSE = 32
_DENSE_AFTER_ALL = 1024
_STALLED = 15
_REFINED = 3


class Solved(NamedTuple):
    """What the interior point method came to.

    Attributes:
        shares: (2, D).
        gap: By how much of itself the sum of the latencies may be above the least; a proven bound. More than what was
            asked for where numbers are too far apart.
    """

    shares: Array
    gap: float


class Epigraph(NamedTuple):
    """A problem for I layers and D devices. Row 0 of pairs is the downlink, row 1 the uplink.

    A direction of a device takes ``work h(share)``, with h = 1 / share, or 1 / (share log1p(sigma / share)).

    Attributes:
        fixed_s: (I, D).
        work: (2, I, D).
        sigma: (2, D), the SNR over the whole band; ``None`` under a linear rule.
        loaded: (I, D), which devices a layer waits for; at least one in each layer.
        low: (2, D), the smallest shares; less than 1 together.
        same: Whether a device has one share for both directions.
    """

    fixed_s: Array
    work: Array
    sigma: Optional[Array]
    loaded: Mask
    low: Array
    same: bool

    def curves(self, shares: Array) -> Tuple[Array, Array, Array]:
        """Return h and its first two derivatives at shares (2, D)."""
        if self.sigma is None:
            h = 1.0 / shares
            return h, -h * h, 2.0 * h * h * h
        x = self.sigma / shares
        log = np.log1p(x)
        series = x * x * (0.5 - x * (2 / 3 - 0.75 * x))
        bend = np.where(x < 1e-3, series, log - x / (1.0 + x))
        # q = s log1p(sigma / s): q' = bend, q'' = -x^2 / (s (1 + x)^2)
        q = shares * log
        second = -x * x / (shares * (1.0 + x) ** 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            h = 1.0 / q
            found = h, -bend * h * h, 2.0 * bend * bend * h**3 - second * h * h
        usable = self.sigma > 0
        return (
            np.where(usable, found[0], 0.0),
            np.where(usable, found[1], 0.0),
            np.where(usable, found[2], 0.0),
        )


def solve(problem: Epigraph, gap: float = GAP) -> Solved:
    """Solve an epigraph problem; in each direction the shares are 1 together.

    Args:
        problem: The problem.
        gap: The relative duality gap to come to.
    """
    rows = 1 if problem.same else 2
    low = problem.low[:rows]
    free = 1.0 - low.sum(axis=1, keepdims=True)
    shares = low + free / low.shape[1]
    times, _, _ = _times(problem, shares)
    unit = float(np.where(problem.loaded, times, 0.0).max(axis=1).mean())
    problem = problem._replace(fixed_s=problem.fixed_s / unit, work=problem.work / unit)
    times, slopes, bends = _times(problem, shares)
    tops = _largest(problem, times) * 1.1 + 1e-9
    slack = np.where(problem.loaded, tops[:, None] - times, 1.0)
    prices = np.where(problem.loaded, 1.0 / slack, 0.0)
    prices /= prices.sum(axis=1, keepdims=True)
    mean = float((prices * slack).sum() / problem.loaded.sum())
    bounds = mean / (shares - low)
    count = int(problem.loaded.sum()) + low.size
    centre, bound_s = 0.3, -np.inf
    best, best_s = shares, np.inf
    dense = low.size <= max(_DENSE, len(tops))
    nearest_s, since = np.inf, 0
    for _ in range(_STEPS):
        top_s = float(_largest(problem, times).sum())
        bound_s = max(bound_s, _lower_bound(problem, prices, times, slopes, shares, low))
        if top_s < best_s:
            best, best_s = shares, top_s
        if best_s - bound_s <= gap * best_s:
            break
        since = 0 if best_s - bound_s < 0.9 * nearest_s else since + 1
        nearest_s = min(nearest_s, best_s - bound_s)
        if since > _STALLED:
            if dense or low.size > _DENSE_AFTER_ALL:
                break
            dense, since = True, 0
        target = centre * float((prices * slack).sum() + (bounds * (shares - low)).sum()) / count
        # Less than what is asked for only costs digits.
        target = max(target, 0.05 * gap * top_s / count)
        try:
            d_shares, d_tops = _newton(
                problem, shares, slack, prices, bounds, slopes, bends, low, target, dense
            )
        except np.linalg.LinAlgError:
            break
        d_times = (slopes * d_shares[:, None]).sum(axis=0)
        weight = prices / slack
        d_prices = np.where(
            problem.loaded, target / slack - prices - weight * (d_tops[:, None] - d_times), 0.0
        )
        d_bounds = target / (shares - low) - bounds - bounds / (shares - low) * d_shares
        step = min(
            1.0,
            0.99 * _longest(prices, d_prices),
            0.99 * _longest(bounds, d_bounds),
            0.99 * _longest(shares - low, d_shares),
        )
        while True:
            # Times are convex, so a step makes them longer than its tangent says; then the T_i give way a little.
            trial = shares + step * d_shares
            trial_times, trial_slopes, trial_bends = _times(problem, trial)
            nearest = np.where(problem.loaded, slack, np.inf).min(axis=1)
            least = _largest(problem, trial_times) + _KEPT_SLACK * nearest
            straight = tops + step * d_tops
            trial_tops = np.maximum(straight, least)
            if float((trial_tops - straight).sum()) <= _GIVEN_WAY * (top_s - bound_s) or step < 1e-9:
                break
            step *= 0.7
        trial_slack = np.where(
            problem.loaded, np.maximum(trial_tops[:, None] - trial_times, _LEAST_SLACK), 1.0
        )
        shares, tops, slack = trial, trial_tops, trial_slack
        times, slopes, bends = trial_times, trial_slopes, trial_bends
        prices, bounds = prices + step * d_prices, bounds + step * d_bounds
        centre = 0.05 if step > 0.9 else 0.2 if step > 0.3 else 0.6
    return Solved(np.repeat(best, 2, axis=0) if problem.same else best, (best_s - bound_s) / best_s)


def _times(problem: Epigraph, shares: Array) -> Tuple[Array, Array, Array]:
    """Return each layer's times (I, D), and their first and second derivatives by the shares, (rows, I, D)."""
    both = np.repeat(shares, 2, axis=0) if problem.same else shares
    h, first, second = problem.curves(both)
    times = problem.fixed_s + (problem.work * h[:, None]).sum(axis=0)
    slopes, bends = problem.work * first[:, None], problem.work * second[:, None]
    if problem.same:
        slopes, bends = slopes.sum(axis=0)[None], bends.sum(axis=0)[None]
    return times, slopes, bends


def _largest(problem: Epigraph, times: Array) -> Array:
    largest: Array = np.where(problem.loaded, times, -np.inf).max(axis=1)
    return largest


def _lower_bound(
    problem: Epigraph, prices: Array, times: Array, slopes: Array, shares: Array, low: Array
) -> float:
    """Return what no allocation can beat: the multipliers' mean of the times, as its tangent bounds it from below."""
    mean = prices / prices.sum(axis=1, keepdims=True)
    value = float((mean * np.where(problem.loaded, times, 0.0)).sum())
    slope = (mean * slopes).sum(axis=1)
    room = 1.0 - low.sum(axis=1)
    return value + float((slope.min(axis=1) * room).sum() + (slope * (low - shares)).sum())


def _newton(
    problem: Epigraph,
    shares: Array,
    slack: Array,
    prices: Array,
    bounds: Array,
    slopes: Array,
    bends: Array,
    low: Array,
    target: float,
    dense: bool,
) -> Tuple[Array, Array]:
    """Return the Newton step in the shares (rows, D) and in the T_i (I,)."""
    rows, devices = shares.shape
    weight = prices / slack  # 0 where a layer does not wait for a device
    mixed = weight * slopes  # (rows, I, D)
    per_top = weight.sum(axis=1)
    wanted = np.where(problem.loaded, target / slack, 0.0)
    right_tops = wanted.sum(axis=1) - 1.0
    right = target / (shares - low) - (slopes * wanted).sum(axis=1)
    diagonal = (prices * bends).sum(axis=1) + bounds / (shares - low)
    cross = np.einsum("rik,qik->krq", mixed, slopes)
    cross[:, range(rows), range(rows)] += diagonal.T
    size = rows * devices
    ones = np.kron(np.eye(rows), np.ones((devices, 1)))  # (size, rows)
    wide = mixed.transpose(0, 2, 1).reshape(size, -1)  # (size, I)
    missing = 1.0 - shares.sum(axis=1)
    if dense:
        matrix = np.zeros((size + rows, size + rows))
        for one in range(rows):
            for two in range(rows):
                part = matrix[one * devices : (one + 1) * devices, two * devices : (two + 1) * devices]
                part[range(devices), range(devices)] = cross[:, one, two]
        matrix[:size, :size] -= (wide / per_top) @ wide.T
        matrix[:size, size:], matrix[size:, :size] = ones, ones.T
        side = np.concatenate([right.ravel() + wide @ (right_tops / per_top), missing])
        dense_step = _solved(matrix, side)[:size]
        return dense_step.reshape(rows, devices), (right_tops + wide.T @ dense_step) / per_top
    inverse: Array = np.linalg.inv(cross)  # (D, rows, rows)

    def times(block: Array, columns: Array) -> Array:
        """Return a block-diagonal matrix (D, rows, rows) times columns (size, n)."""
        product: Array = np.einsum("krq,qkn->rkn", block, columns.reshape(rows, devices, -1))
        return product.reshape(size, -1)

    outer = np.concatenate([-wide, ones], axis=1)  # (size, I + rows)
    solved = times(inverse, outer)
    matrix = -outer.T @ solved
    layers = len(per_top)
    matrix[range(layers), range(layers)] += per_top
    own = np.concatenate([per_top, np.zeros(rows)])
    sides = right.ravel(), np.concatenate([right_tops, missing])
    step: Array = np.zeros(size)
    rest: Array = np.zeros(layers + rows)
    # Eliminating the shares loses digits, which repeating it with what is missing brings back.
    for _ in range(_REFINED):
        lacks = sides[0] - times(cross, step[:, None])[:, 0] - outer @ rest
        lacks_rest = sides[1] - outer.T @ step - own * rest
        begun = times(inverse, lacks[:, None])[:, 0]
        more: Array = _solved(matrix, lacks_rest - outer.T @ begun)
        rest += more
        step += begun - solved @ more
    return step.reshape(rows, devices), rest[:layers]


def _solved(matrix: Array, side: Array) -> Array:
    found: Array = np.asarray(np.linalg.solve(matrix, side))
    if not np.isfinite(found).all():
        raise np.linalg.LinAlgError
    return found


def _longest(value: Array, step: Array) -> float:
    """Return the longest step after which no value is negative."""
    falls = step < 0
    return float((-value[falls] / step[falls]).min(initial=1e9)) if falls.any() else 1e9
