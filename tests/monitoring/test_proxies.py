"""The samples in deploy/proxy, in a real nginx and a real Caddy in front of a real service."""

import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.asking import TEA
from tests.monitoring.conftest import DEPLOY, KEY, program
from tests.processes import free_port, running

NAME = "rewards.example.com"
NGINX = """
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {sample}
}}
"""


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """The sample with what is of one machine replaced; each pattern must be in it."""
    for pattern, replacement in pairs:
        text, count = re.subn(pattern, replacement, text)
        assert count, pattern
    return text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificate")
    files = ["-keyout", str(directory / "privkey.pem"), "-out", str(directory / "fullchain.pem")]
    subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *files, *subject]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    return directory


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(
    request: pytest.FixtureRequest, service: httpx.Client, certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    directory, port = tmp_path_factory.mktemp(request.param), free_port()
    target = r"127\.0\.0\.1:8000", service.base_url.netloc.decode()
    if request.param == "nginx":
        sample = replaced(
            (DEPLOY / "proxy/nginx.conf").read_text(encoding="utf-8"),
            target,
            (r"listen 443", f"listen 127.0.0.1:{port}"),
            (r"/etc/ssl/rewards", str(certificate)),
        )
        config = directory / "nginx.conf"
        config.write_text(NGINX.format(directory=directory, sample=sample), encoding="utf-8")
        command = [program("nginx"), "-c", str(config)]
    else:
        tls = f"tls {certificate}/fullchain.pem {certificate}/privkey.pem"
        sample = replaced(
            (DEPLOY / "proxy/Caddyfile").read_text(encoding="utf-8"),
            target,
            (rf"(?m)^{NAME} {{", f"{{\n\tadmin off\n\tauto_https off\n}}\n\nhttps://{NAME}:{port} {{\n\t{tls}"),
        )
        (directory / "Caddyfile").write_text(sample, encoding="utf-8")
        command = [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(directory / "Caddyfile")]
    with running(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL), connected(certificate, port) as client:
        yield client


@contextmanager
def connected(certificate: Path, port: int) -> Iterator[httpx.Client]:
    """A client that trusts the certificate and takes the proxy for the host that is named in it."""
    context = ssl.create_default_context(cafile=str(certificate / "fullchain.pem"))
    headers = {"host": NAME, "authorization": f"Bearer {KEY}"}
    with httpx.Client(
        base_url=f"https://127.0.0.1:{port}", verify=context, headers=headers, timeout=100, trust_env=False
    ) as client:
        client.base_url = httpx.URL(f"https://127.0.0.1:{port}")
        client.event_hooks = {"request": [lambda request: request.extensions.update(sni_hostname=NAME)]}
        deadline = time.monotonic() + 60
        while True:
            try:
                client.get("/health")
            except httpx.TransportError:  # it is starting
                assert time.monotonic() < deadline
                time.sleep(0.1)
            else:
                break
        yield client


def test_a_request_through_the_proxy_gets_the_services_answer(proxy: httpx.Client, service: httpx.Client) -> None:
    body = {"items": [TEA]}
    through = proxy.post("/score", json=body)
    assert through.status_code == 200
    assert through.json()["results"] == service.post("/score", json=body).json()["results"]


def test_a_path_prefix_is_taken_off_and_the_docs_work_under_it(proxy: httpx.Client) -> None:
    assert proxy.post("/rewards/score", json={"items": [TEA]}).status_code == 200
    page = proxy.get("/rewards/docs").text
    for url in re.findall(r"""(?:src=|href=|url: ?)["']([^"']+)["']""", page):
        assert proxy.get(f"/rewards/{url}").status_code == 200, url


def test_a_body_over_the_limit_is_refused(proxy: httpx.Client) -> None:
    try:
        response = proxy.post("/score", content=b" " * 70_000_000, headers={"content-type": "application/json"})
    except httpx.WriteError:  # the proxy closed the connection without reading on
        return
    assert response.status_code == 413


def test_errors_and_request_ids_pass_through(proxy: httpx.Client) -> None:
    response = proxy.post("/score", json={"items": []}, headers={"x-request-id": "abc"})
    assert response.status_code == 422
    assert response.headers["x-request-id"] == "abc"
    assert proxy.post("/score", json={"items": [TEA]}, headers={"authorization": "Bearer no"}).status_code == 401
