"""Measurements for Prometheus, which reads them at `/metrics`.

Tokens per step, which is the mean batch size, is the quotient of two rates:
`rate(tinylm_new_tokens_total[1m]) / rate(tinylm_steps_total[1m])`.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from tinylm.serving.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GAUGES = {  # field of `Counts`: name, meaning
    "growing": ("tinylm_texts_growing", "Texts that grow."),
    "waiting": ("tinylm_texts_waiting", "Texts that wait to grow."),
    "cache_bytes": ("tinylm_cache_bytes", "Memory of the key/value cache."),
}
COUNTERS = {
    "new_tokens": ("tinylm_new_tokens", "Tokens generated."),
    "prompt_tokens": ("tinylm_prompt_tokens", "Tokens of prompts read."),
    "steps": ("tinylm_steps", "Steps; each makes one token of every growing text."),
    "texts": ("tinylm_texts", "Texts that have ended by themselves."),
}


class Metrics:
    """The measurements of a server.

    Args:
        engines: by the names of their models
        paths: those that are counted by name
    """

    def __init__(self, engines: Mapping[str, Engine], paths: set[str]) -> None:
        self.engines, self.paths, self.registry = engines, paths, CollectorRegistry()
        self.registry.register(self)
        options = {"registry": self.registry, "buckets": SECONDS}
        self._requests = Counter("tinylm_requests", "Answers.", ["path", "status"], registry=self.registry)
        self._seconds = Histogram("tinylm_request_seconds", "Time of an answer.", ["path"], **options)
        self._first = Histogram(
            "tinylm_time_to_first_token_seconds", "Time to the first token of a stream.", ["model"], **options
        )

    def collect(self) -> Iterator[Metric]:
        """The counts of the engines, in the form of prometheus_client."""
        counts = {model: engine.counts for model, engine in self.engines.items()}
        for kind, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for count, (name, meaning) in kind.items():
                metric = family(name, meaning, labels=["model"])
                for model, each in counts.items():
                    metric.add_metric([model], getattr(each, count))
                yield metric

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer; 499 stands for a client that left before it."""
        path = path if path in self.paths else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """Notes the time to the first token of a stream."""
        self._first.labels(model).observe(seconds)

    def response(self) -> Response:
        """The answer to `/metrics`."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
