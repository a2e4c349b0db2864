"""Merges the metrics pages of several replicas into one page, in Prometheus's text format."""

from collections.abc import Iterable, Mapping

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def merge_pages(pages: Mapping[str, str]) -> bytes:
    """One page of all samples, each with the label `replica`; `pages` maps a replica's name to its page.

    Raises ValueError for a page that is not in Prometheus's text format.
    """
    families: dict[str, Metric] = {}
    for replica, page in pages.items():
        for family in text_string_to_metric_families(page):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value, sample.timestamp)
    return generate_latest(Families(families.values()))


class Families(Collector):
    """A collector of given metric families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
