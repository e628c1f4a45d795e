"""The metrics of the last step as text for Prometheus, on this host alone."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from megatron_resrl.observe.metric_names import find_metric

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
_PREFIX = "megatron_resrl_"
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")
_EVALUATION = re.compile(r"eval/(?P<set>.+)/(?P<metric>[^/]+)")


def exposed_name(metric: str) -> tuple[str, dict[str, str]]:
    """Name and labels of a metric there.

    `reward/mean` is `megatron_resrl_reward_mean`; `eval/aime24/avg@16` is
    `megatron_resrl_eval_avg_16{set="aime24"}`.
    """
    match = _EVALUATION.fullmatch(metric)
    labels = {"set": match["set"]} if match else {}
    name = f"eval_{match['metric']}" if match else metric
    return _PREFIX + _NOT_IN_NAMES.sub("_", name), labels


class PrometheusEndpoint:
    """Serves the newest values from threads of its own, so that no step waits for a scraper.

    A port that another process has taken is a warning, and the run goes on without the endpoint.

    Attributes:
        port: Where it listens; None: it does not.
    """

    def __init__(self, port: int) -> None:
        """
        Args:
            port: On 127.0.0.1; 0: any free one.

        Raises:
            ImportError: prometheus-client is not installed.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        self.port: int | None = None
        self._values: Mapping[str, float] = {}
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            server, thread = start_http_server(port, addr=ADDRESS, registry=registry)
        except OSError as error:
            logger.warning(
                "logging.prometheus_port = %d: %s; there is no endpoint for Prometheus", port, error
            )
            return
        self._server: Any = server
        self._thread: threading.Thread = thread
        self.port = server.server_port
        logger.info("metrics for Prometheus: http://%s:%d/metrics", ADDRESS, self.port)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Replaces the values that scrapers get; those of evaluations stay until the next one."""
        kept = {name: value for name, value in self._values.items() if name.startswith("eval/")}
        self._values = kept | {"step": float(step)} | dict(metrics)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the library for each request."""
        from prometheus_client.core import GaugeMetricFamily

        families: dict[str, GaugeMetricFamily] = {}
        for metric, value in self._values.items():
            name, labels = exposed_name(metric)
            known = find_metric(metric)
            meaning = metric if known is None else known.meaning
            family = families.setdefault(
                name, GaugeMetricFamily(name, meaning, labels=list(labels))
            )
            family.add_metric(list(labels.values()), value)
        return iter(families.values())

    def close(self) -> None:
        """Ends the server."""
        if self.port is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
