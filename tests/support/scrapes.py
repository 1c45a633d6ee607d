"""Read the metrics at /metrics as Prometheus reads them."""

import urllib.request
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """One exposition: `scrape("name", label="value")` is the sum of the samples that match."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self, name: str, **labels: str) -> float:
        return sum(sample.value for sample in self._matching(name, labels))

    def has(self, name: str, **labels: str) -> bool:
        return any(True for _ in self._matching(name, labels))

    @property
    def series(self) -> int:
        return sum(len(family.samples) for family in text_string_to_metric_families(self._text))

    @property
    def names(self) -> set[str]:
        """Every name that a query can use, including metrics without samples yet."""
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        return {
            family.name + ending
            for family in text_string_to_metric_families(self._text)
            for ending in endings.get(family.type, [""])
        }

    def _matching(self, name: str, labels: dict[str, str]) -> Iterator:
        lines = [line for line in self._text.splitlines() if line.startswith(name)]
        for family in text_string_to_metric_families("\n".join(lines)):  # not the other thousands
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    yield sample


def scrape(url: str, token: str = "") -> Scrape:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return Scrape(answer.read().decode())
