"""Counters and histograms in Prometheus' text format (version 0.0.4), without a dependency."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

TIMES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    """`{route="/health",status="200"}`; the label values are the program's own words and need no escapes."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(names, values, strict=True)) + "}" if names else ""


class Counter:
    """A number that only grows, one for each combination of label values."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help_text, self.labels = name, help_text, tuple(labels)
        self._values: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float, *values: str) -> None:
        """Count `amount` more under these label values."""
        with self._lock:
            self._values[values] = self._values.get(values, 0.0) + amount

    def lines(self) -> Iterator[str]:
        """The counter as exposition lines."""
        yield f"# HELP {self.name} {self.help_text}"
        yield f"# TYPE {self.name} counter"
        with self._lock:
            held = dict(self._values)
        for values, value in sorted(held.items()):
            yield f"{self.name}{_labels(self.labels, values)} {_number(value)}"


class Histogram:
    """How often values fell under each bound, for each combination of label values."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        self.name, self.help_text, self.bounds, self.labels = name, help_text, tuple(bounds), tuple(labels)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *values: str) -> None:
        """Count one value."""
        with self._lock:
            counts = self._counts.setdefault(values, [0] * (len(self.bounds) + 1))
            counts[bisect_left(self.bounds, value)] += 1
            self._sums[values] = self._sums.get(values, 0.0) + value

    def lines(self) -> Iterator[str]:
        """The histogram as exposition lines: cumulative buckets, sum and count."""
        yield f"# HELP {self.name} {self.help_text}"
        yield f"# TYPE {self.name} histogram"
        with self._lock:
            held = {values: (list(counts), self._sums[values]) for values, counts in self._counts.items()}
        for values, (counts, total) in sorted(held.items()):
            below = 0
            for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=True):
                below += count
                yield f"{self.name}_bucket{_labels((*self.labels, 'le'), (*values, bound))} {below}"
            yield f"{self.name}_sum{_labels(self.labels, values)} {total!r}"
            yield f"{self.name}_count{_labels(self.labels, values)} {below}"


class Metrics:
    """Everything the server counts about itself."""

    def __init__(self) -> None:
        self.requests = Counter("chinchilla_requests_total", "Requests answered.", ("route", "status"))
        self.request_s = Histogram("chinchilla_request_seconds", "Time to answer a request.", TIMES_S, ("route",))
        self.first_token_s = Histogram("chinchilla_first_token_seconds", "Time to a completion's first text.", TIMES_S)
        self.batch_rows = Histogram("chinchilla_batch_rows", "Rows answered together, a batch or step.", ROWS)
        self.tokens = Counter("chinchilla_tokens_total", "Tokens read (in) and written (out).", ("direction",))
        self.cancelled = Counter("chinchilla_cancelled_total", "Requests whose client left before the answer.")
        self.refused = Counter("chinchilla_refused_total", "Requests refused for want of room or time.", ("reason",))

    def render(self, waiting_rows: Callable[[], int]) -> str:
        """The whole page; `waiting_rows` tells the queue's depth now."""
        lines = [
            "# HELP chinchilla_waiting_rows Texts and prompts waiting for the engine.",
            "# TYPE chinchilla_waiting_rows gauge",
            f"chinchilla_waiting_rows {waiting_rows()}",
        ]
        for part in (self.requests, self.request_s, self.first_token_s, self.batch_rows, self.tokens):
            lines += part.lines()
        for counter in (self.cancelled, self.refused):
            lines += counter.lines()
        return "\n".join(lines) + "\n"
