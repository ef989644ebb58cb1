"""Every number the service tells of itself: its name, its unit, its meaning. Prometheus reads them at /metrics.

Counting is a few dictionary operations, since it happens with every request; families and texts are made when they are
asked for. Labels are bounded: names beyond a limit count as `other`, so that nobody can fill the memory with names.

Means are for the reader to make: mean stated trust is `toolcache_trust_sum / toolcache_trust_count`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_K = TypeVar("_K", bound=Hashable)

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER = "other"
"""Stands for the names beyond a limit, and for tools that a namespace does not have."""
MOST_NAMESPACES = 100
MOST_TOOLS = 100
"""In one namespace."""
MOST_JOBS = 20
"""In one namespace."""
MOST_SERIES = 20_000
"""Answers are counted by namespace, tool, tier and job: no more combinations of them than these."""
LONGEST_NAME = 64
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of every histogram: an exact answer takes half a millisecond, a wait up to a minute."""


class Load(Protocol):
    """How many requests are in work, and how many wait for results that others execute."""

    @property
    def in_flight(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class Upkeep(Protocol):
    """What a cache counts of the tidying it does by itself."""

    evicted: int
    expired: int


class Encoding(Protocol):
    """What an embedder counts of its own work."""

    @property
    def batches(self) -> int: ...
    @property
    def texts(self) -> int: ...
    @property
    def memo_hits(self) -> int: ...


class Histogram:
    """Seconds, by how many were at most each bound."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        return list(zip([*map(str, SECONDS), "+Inf"], accumulate(self.counts), strict=True))


class _Answers:
    """What is counted of the answers of one kind: namespace, tool, tier, job."""

    __slots__ = ("count", "saved_s", "trust")

    def __init__(self) -> None:
        self.count = 0
        self.trust = 0.0
        self.saved_s = 0.0


class _Names:
    """Names as they stand, until there are too many of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def label(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) >= self._most or len(name) > LONGEST_NAME:
            return OTHER
        self._known.add(name)
        return name


class _NamesOf:
    """Names within other names: what is in one of them takes no place in another."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: dict[str, _Names] = {}

    def __getitem__(self, owner: str) -> _Names:
        names = self._names.get(owner)
        if names is None:
            names = self._names[owner] = _Names(self._most)
        return names


class Metrics(Collector):
    """Counts while the service works; `text` tells. Of one process, since it started."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str, str, str], _Answers] = {}
        self._records: dict[tuple[str, str], int] = {}
        self._requests: dict[tuple[str, str], Histogram] = {}
        self._refused: dict[str, int] = {}
        self._leases: dict[tuple[str, str], int] = {}
        self._waits = Histogram()
        self._lag = Histogram()
        self._store_errors = 0
        self._load: Load | None = None
        self._upkeep: Upkeep | None = None
        self._encoding: Encoding | None = None
        self._namespaces = _Names(MOST_NAMESPACES)
        self._tools = _NamesOf(MOST_TOOLS)
        self._jobs = _NamesOf(MOST_JOBS)

    def watch(
        self, *, load: Load | None = None, upkeep: Upkeep | None = None, encoding: Encoding | None = None
    ) -> None:
        """Read these numbers too, whenever the metrics are asked for."""
        self._load = load or self._load
        self._upkeep = upkeep or self._upkeep
        self._encoding = encoding or self._encoding

    # -- counting ------------------------------------------------------------------------------------------------------

    def answered(
        self, namespace: str, tool: str, tier: str, job: str, trust: float, saved_s: float, *, count: int = 1
    ) -> None:
        """So many answers of one kind: sums of their trust and of the seconds they saved.

        `tool` is OTHER for one that the namespace does not have.
        """
        cell = self._answers.get((namespace, tool, tier, job)) or self._cell(namespace, tool, tier, job)
        cell.count += count
        cell.trust += trust
        cell.saved_s += saved_s

    def recorded(self, namespace: str, outcome: str) -> None:
        _add(self._records, (self._namespaces.label(namespace), outcome))

    def requested(self, route: str, status: str, seconds: float) -> None:
        """One request, by its route as it is documented and the class of its status: 2xx, 4xx, 5xx, or `gone`."""
        histogram = self._requests.get((route, status))
        if histogram is None:
            histogram = self._requests[route, status] = Histogram()
        histogram.add(seconds)

    def refused(self, code: str) -> None:
        """A request that was answered with a problem."""
        _add(self._refused, code)

    def leased(self, namespace: str, event: str, count: int = 1) -> None:
        """What happened to leases: `granted`, `extended`, `released`, or `lost`, for one that had passed on before."""
        _add(self._leases, (self._namespaces.label(namespace), event), count)

    def waited(self, seconds: float) -> None:
        self._waits.add(seconds)

    def lagged(self, seconds: float) -> None:
        self._lag.add(seconds)

    def store_failed(self) -> None:
        self._store_errors += 1

    def _cell(self, namespace: str, tool: str, tier: str, job: str) -> _Answers:
        namespace = self._namespaces.label(namespace)
        key = (namespace, self._tools[namespace].label(tool), tier, self._jobs[namespace].label(job))
        if key not in self._answers and len(self._answers) >= MOST_SERIES:
            key = (OTHER, OTHER, tier, OTHER)
        cell = self._answers.get(key)
        if cell is None:
            cell = self._answers[key] = _Answers()
        return cell

    # -- telling -------------------------------------------------------------------------------------------------------

    def text(self) -> bytes:
        """Everything, in Prometheus's text format. May be called in another thread: it reads copies."""
        registry = CollectorRegistry()
        registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        return generate_latest(registry)

    def collect(self) -> Iterable[Metric]:
        yield from self._about_answers()
        yield from self._about_requests()
        yield from self._about_storing()
        if self._encoding is not None:
            yield from _about_encoding(self._encoding)

    def _about_answers(self) -> Iterator[Metric]:
        answers = list(self._answers.items())
        yield _counter(
            "toolcache_answers",
            "Answers, misses too, by what was asked and how it was found.",
            ("namespace", "tool", "tier", "job"),
            {key: cell.count for key, cell in answers},
        )
        yield _counter(
            "toolcache_saved_seconds",
            "Seconds that live calls would have taken whose results were served.",
            ("namespace", "job"),
            _summed(((key[0], key[3]), cell.saved_s) for key, cell in answers),
        )
        counts = _summed(((key[0], key[2]), float(cell.count)) for key, cell in answers)
        sums = _summed(((key[0], key[2]), cell.trust) for key, cell in answers)
        trust = SummaryMetricFamily(
            "toolcache_trust", "Trust as it was stated with answers, 0 to 1.", labels=("namespace", "tier")
        )
        for key, count in counts.items():
            trust.add_metric(key, count_value=int(count), sum_value=sums[key])
        yield trust

    def _about_requests(self) -> Iterator[Metric]:
        yield _histogram(
            "toolcache_request_seconds",
            "Seconds from a request's headers to the end of its reply.",
            ("route", "status"),
            dict(list(self._requests.items())),
        )
        yield _counter(
            "toolcache_problems", "Requests answered with a problem, by its code.", ("code",), _by_one(self._refused)
        )
        if self._load is not None:
            yield GaugeMetricFamily("toolcache_requests_in_flight", "Requests in work now.", value=self._load.in_flight)
            yield GaugeMetricFamily(
                "toolcache_requests_waiting",
                "Requests that wait now for results which others execute.",
                value=self._load.waiting,
            )
        yield _histogram(
            "toolcache_wait_seconds", "Seconds lookups waited for results of others.", (), {(): self._waits}
        )
        yield _histogram(
            "toolcache_event_loop_lag_seconds",
            "Seconds by which a timer of the event loop came late: what every request waits beside its own work.",
            (),
            {(): self._lag},
        )

    def _about_storing(self) -> Iterator[Metric]:
        yield _counter(
            "toolcache_records",
            "Recorded results: stored, known, conflict, refused.",
            ("namespace", "outcome"),
            dict(list(self._records.items())),
        )
        yield _counter(
            "toolcache_leases",
            "Leases: granted, extended, released; lost are those that had passed on when their holder came back.",
            ("namespace", "event"),
            dict(list(self._leases.items())),
        )
        if self._upkeep is not None:
            yield _counter(
                "toolcache_entries_removed",
                "Entries this process removed by itself: evicted for room, or expired.",
                ("why",),
                {("evicted",): self._upkeep.evicted, ("expired",): self._upkeep.expired},
            )
        yield CounterMetricFamily(
            "toolcache_store_errors", "Requests that failed because the store was away.", value=self._store_errors
        )


def _about_encoding(encoding: Encoding) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "toolcache_encoder_batches", "Batches that the encoder worked on.", value=encoding.batches
    )
    yield CounterMetricFamily(
        "toolcache_encoder_texts", "Texts that the encoder turned into vectors.", value=encoding.texts
    )
    yield CounterMetricFamily(
        "toolcache_encoder_memo_hits", "Texts whose vector was still remembered.", value=encoding.memo_hits
    )


def _counter(name: str, meaning: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _histogram(name: str, meaning: str, labels: Sequence[str], values: Mapping[tuple[str, ...], Histogram]) -> Metric:
    family = HistogramMetricFamily(name, meaning, labels=labels)
    for key, histogram in values.items():
        family.add_metric(key, histogram.buckets(), histogram.sum_s)
    return family


def _add(counts: dict[_K, int], key: _K, count: int = 1) -> None:
    counts[key] = counts.get(key, 0) + count


def _summed(values: Iterable[tuple[_K, float]]) -> dict[_K, float]:
    sums: dict[_K, float] = {}
    for key, value in values:
        sums[key] = sums.get(key, 0.0) + value
    return sums


def _by_one(values: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    return {(key,): value for key, value in list(values.items())}
