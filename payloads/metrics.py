"""Metrics of a process, as Prometheus reads them (text exposition format 0.0.4). Standard library only.

    metrics = Metrics()
    seconds = metrics.histogram("testbed_dispatch_seconds", "From sending to the whole answer.", ("device",))
    orin = seconds.labels("orin-nano")     # once; what follows is what a hot path does
    orin.observe(0.004)
    metrics.text()

Any thread may count while another one reads. A counter or gauge that somebody keeps anyway is followed instead: it is
asked when somebody reads, and costs nothing before.
"""

from __future__ import annotations

import math
import re
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import Callable, Dict, Generic, Iterator, List, Sequence, Tuple, Type, TypeVar

__all__ = ["CONTENT_TYPE", "LATENCY_BUCKETS_S", "Counter", "Family", "Gauge", "Histogram", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Upper bounds that tell a loopback (0.1 ms) from a wireless link (1 s), in the steps 1, 2.5, 5.
LATENCY_BUCKETS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")

Sample = Tuple[str, Tuple[Tuple[str, str], ...], float]


class _Instrument(ABC):
    """What one combination of labels counts."""

    __slots__ = ()
    kind = "untyped"

    @abstractmethod
    def samples(self, name: str, labels: Tuple[Tuple[str, str], ...]) -> Iterator[Sample]:
        """Yield the samples: a name, labels, a number."""


class Counter(_Instrument):
    """A number that only grows."""

    __slots__ = ("_follow", "_lock", "_value")
    kind = "counter"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0.0
        self._follow: List[Callable[[], float]] = []

    @property
    def value(self) -> float:
        """The number now."""
        with self._lock:
            followed = sum(follow() for follow in self._follow)
            return self._value + followed

    def add(self, amount: float = 1) -> None:
        """Add to the number.

        Raises:
            ValueError: The amount is below zero, or no number.
        """
        if not amount >= 0:
            raise ValueError(f"a counter only grows, and cannot take {amount}")
        with self._lock:
            self._value += amount

    def follow(self, read: Callable[[], float]) -> None:
        """Add from now on what ``read`` says whenever somebody looks; it must not shrink, and not fail."""
        with self._lock:
            self._follow.append(read)

    def samples(self, name: str, labels: Tuple[Tuple[str, str], ...]) -> Iterator[Sample]:
        """Yield the one sample."""
        yield name, labels, self.value


class Gauge(_Instrument):
    """A number that goes up and down."""

    __slots__ = ("_lock", "_read", "_value")
    kind = "gauge"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0.0
        self._read: Callable[[], float] = lambda: self._value

    @property
    def value(self) -> float:
        """The number now."""
        return float(self._read())

    def set(self, value: float) -> None:
        """Set the number."""
        self._value = value  # one store: nothing to lock

    def add(self, amount: float) -> None:
        """Add to the number, or take away."""
        with self._lock:
            self._value += amount

    def follow(self, read: Callable[[], float]) -> None:
        """Tell from now on what ``read`` says whenever somebody looks; it must not fail."""
        self._read = read

    def samples(self, name: str, labels: Tuple[Tuple[str, str], ...]) -> Iterator[Sample]:
        """Yield the one sample."""
        yield name, labels, self.value


class Histogram(_Instrument):
    """How many observations lie below each of some bounds, and their sum."""

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")
    kind = "histogram"

    def __init__(self, bounds: Tuple[float, ...]) -> None:
        self._lock = threading.Lock()
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation; one that is no number is left out."""
        if value != value:
            return
        place = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[place] += 1
            self._sum += value

    def samples(self, name: str, labels: Tuple[Tuple[str, str], ...]) -> Iterator[Sample]:
        """Yield a sample for each bound, all below it counted, then the sum and the count."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        below = 0
        for bound, count in zip((*self._bounds, math.inf), counts):
            below += count
            yield f"{name}_bucket", (*labels, ("le", number(bound))), below
        yield f"{name}_sum", labels, total
        yield f"{name}_count", labels, below


I = TypeVar("I", bound=_Instrument)  # noqa: E741 - an instrument


class Family(Generic[I]):
    """A metric: one instrument for each combination of its labels' values."""

    def __init__(
        self, name: str, help_text: str, labels: Tuple[str, ...], kind: Type[I], make: Callable[[], I]
    ) -> None:
        self.name = name
        self.help_text = help_text
        self.label_names = labels
        self.kind = kind
        self._make = make
        self._lock = threading.Lock()
        self._children: Dict[Tuple[str, ...], I] = {}

    def labels(self, *values: str) -> I:
        """Return the instrument of these values, in the order of the labels' names; keep it where time matters.

        Raises:
            ValueError: There are more or fewer labels.
        """
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {self.label_names}, not {len(values)} of them")
        with self._lock:
            child = self._children.get(values)
            if child is None:
                child = self._children[values] = self._make()
            return child

    def lines(self) -> Iterator[str]:
        """Yield the metric's lines."""
        yield f"# HELP {self.name} {_escaped(self.help_text)}"
        yield f"# TYPE {self.name} {self.kind.kind}"
        with self._lock:
            children = sorted(self._children.items())
        for values, child in children:
            for name, labels, value in child.samples(self.name, tuple(zip(self.label_names, values))):
                inner = ",".join(f'{key}="{_escaped(text, quoted=True)}"' for key, text in labels)
                yield f"{name}{{{inner}}} {number(value)}" if inner else f"{name} {number(value)}"


class Metrics:
    """All metrics of a process. Asking again for a metric returns the same one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: Dict[str, Family[_Instrument]] = {}

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Family[Counter]:
        """Return a counter; its name ends in ``_total``.

        Raises:
            ValueError: The name or a label cannot be used, or there is another metric of this name.
        """
        if not name.endswith("_total"):
            raise ValueError(f"{name}: the name of a counter ends in _total")
        return self._family(name, help_text, labels, Counter, Counter)

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Family[Gauge]:
        """Return a gauge.

        Raises:
            ValueError: The name or a label cannot be used, or there is another metric of this name.
        """
        return self._family(name, help_text, labels, Gauge, Gauge)

    def histogram(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        bounds: Sequence[float] = LATENCY_BUCKETS_S,
    ) -> Family[Histogram]:
        """Return a histogram.

        Args:
            name: Its name, with the unit.
            help_text: What is observed, in a sentence.
            labels: The labels' names.
            bounds: Upper bounds of the buckets, ascending; there is one more for what is above the last.

        Raises:
            ValueError: The name, a label or the bounds cannot be used, or there is another metric of this name.
        """
        fixed = tuple(float(bound) for bound in bounds)
        if not fixed or list(fixed) != sorted(set(fixed)) or not all(map(math.isfinite, fixed)):
            raise ValueError(f"{name}: expected ascending bounds, got {fixed}")
        if "le" in labels:
            raise ValueError(f"{name}: the label le is the histogram's own")
        return self._family(name, help_text, labels, Histogram, lambda: Histogram(fixed))

    def text(self) -> str:
        """Return everything in the exposition format, the metrics in the order of their names."""
        with self._lock:
            families = [self._families[name] for name in sorted(self._families)]
        return "".join(f"{line}\n" for family in families for line in family.lines())

    def _family(
        self, name: str, help_text: str, labels: Sequence[str], kind: Type[I], make: Callable[[], I]
    ) -> Family[I]:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a metric's name")
        for label in labels:
            if not _LABEL.fullmatch(label):
                raise ValueError(f"{name}: {label!r} cannot be a label's name")
        made = Family(name, help_text, tuple(labels), kind, make)
        with self._lock:
            there = self._families.setdefault(name, made)  # type: ignore[arg-type]
        if there.kind is not kind or there.label_names != made.label_names:
            raise ValueError(f"there is another metric named {name}")
        return there  # type: ignore[return-value]


def number(value: float) -> str:
    """Return a number as the format spells it: whole ones without a point, the others so that they read back."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _escaped(text: str, quoted: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text
