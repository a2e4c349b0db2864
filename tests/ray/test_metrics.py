"""Several replicas' metrics as one page."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app.ray_serve.metrics import merge_pages
from tests.api.asking import TEA
from tests.conftest import Serve

PAGE = """\
# HELP reward_tokens_total Tokens.
# TYPE reward_tokens_total counter
reward_tokens_total{model="safety"} 3.0
# HELP reward_requests_in_flight Requests.
# TYPE reward_requests_in_flight gauge
reward_requests_in_flight 1.0
"""


def test_every_sample_says_its_replica_and_a_metric_is_described_once() -> None:
    assert merge_pages({"a": PAGE, "b": PAGE}).decode() == (
        "# HELP reward_tokens_total Tokens.\n"
        "# TYPE reward_tokens_total counter\n"
        'reward_tokens_total{model="safety",replica="a"} 3.0\n'
        'reward_tokens_total{model="safety",replica="b"} 3.0\n'
        "# HELP reward_requests_in_flight Requests.\n"
        "# TYPE reward_requests_in_flight gauge\n"
        'reward_requests_in_flight{replica="a"} 1.0\n'
        'reward_requests_in_flight{replica="b"} 1.0\n'
    )


def test_the_page_of_a_cluster_has_every_engines_samples(serve: Serve) -> None:
    with serve(ray_min_replicas=2, ray_max_replicas=2) as client:
        for i in range(8):
            client.post("/score", json={"items": [{**TEA, "prompt": str(i)}]})
        page = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert page.headers["content-type"].startswith("text/plain")
        assert counted(page, "reward_tokens_total") == 2
        assert counted(page, "reward_queue_tokens") == 2


def counted(page: httpx.Response, sample: str) -> int:
    """How many replicas have this sample, on a page that a Prometheus client reads."""
    families = list(text_string_to_metric_families(page.text))
    assert len({family.name for family in families}) == len(families)
    return len({each.labels["replica"] for family in families for each in family.samples if each.name == sample})
