"""What Prometheus reads. Where several processes serve one port, any of them tells the sums of all."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from ..atomic_files import unwritable

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client: the folder where processes share their numbers."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The numbers of one application."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float], bool]]) -> None:
        """gauges: by name a description, what to call for the number, and whether it is one of all processes.

        Raises OutputUnwritable where the files that processes share cannot be made.
        """
        self._own = CollectorRegistry()
        try:
            self._define(self._own, gauges)
        except OSError as error:
            raise unwritable(Path(os.environ.get(FOLDER, "")), error) from None

    def _define(self, own: CollectorRegistry, gauges: Mapping[str, tuple[str, Callable[[], float], bool]]) -> None:
        self._gauges = {}
        self.requests = Counter(
            "fusioner_requests", "Requests answered.", ("route", "method", "status"), registry=own
        )  # fmt: skip
        self.errors = Counter("fusioner_errors", "Requests that failed, by kind of error.", ("kind",), registry=own)
        self.seconds = Histogram(
            "fusioner_request_seconds", "From a request's head to its answer's end.", ("route",), registry=own, buckets=_SECONDS
        )  # fmt: skip
        self.stages = Histogram(
            "fusioner_stage_seconds", "Time of a picture in each stage.", ("stage",), registry=own, buckets=_SECONDS
        )  # fmt: skip
        self.batches = Histogram(
            "fusioner_batch_size", "Pictures that ran as one call.", registry=own, buckets=_SIZES
        )  # fmt: skip
        self.reloads = Counter("fusioner_reloads", "Bundles loaded anew.", ("model", "result"), registry=own)
        for name, (description, read, shared) in gauges.items():
            mode: Any = "livemostrecent" if shared else "livesum"
            gauge = Gauge(f"fusioner_{name}", description, registry=own, multiprocess_mode=mode)
            self._gauges[name] = gauge, read

    def update(self) -> None:
        """Set the gauges, which other processes read from the folder."""
        for gauge, read in self._gauges.values():
            gauge.set(read())

    def families(self) -> list[Metric]:
        """All of them, with the samples of this process."""
        return list(self._own.collect())

    def text(self) -> bytes:
        """The exposition of /metrics. Reads files where several processes share it."""
        if FOLDER not in os.environ:
            return generate_latest(self._own)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
