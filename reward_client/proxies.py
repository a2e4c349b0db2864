"""Which proxy requests go through: the environment's, but none for this machine's own addresses.

It is decided once, since a client has one host. httpx itself would send requests for 127.0.0.1 through a proxy, and fails on
an IPv6 network in NO_PROXY.
"""

from __future__ import annotations

import importlib.util
import ipaddress
from urllib.request import getproxies

import httpx

from reward_client.errors import ConfigurationError

MAX_PORT = 65535
SCHEMES = ("http", "https", "socks5", "socks5h")


def proxy_of(url: httpx.URL) -> str | None:
    """The proxy's URL, or None for a direct connection.

    Reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case. Raises ConfigurationError for an invalid proxy.
    """
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or is_loopback(url.host) or is_exempt(url.host, proxies.get("no", "")):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    scheme = proxy.partition("://")[0].lower()
    remedy = f"set another, or name {url.host} in NO_PROXY"
    if scheme not in SCHEMES:
        raise ConfigurationError(
            f"the proxy variables name a {scheme} proxy; the client knows {', '.join(SCHEMES)}: {remedy}"
        )
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConfigurationError(
            f"the proxy variables name a {scheme} proxy, which needs a package: `pip install httpx[socks]`, or {remedy}"
        )
    try:
        check_host(httpx.URL(proxy), is_needed=True)
    except (httpx.InvalidURL, ValueError) as error:
        shown = proxy.rpartition("@")[2]  # without a password
        raise ConfigurationError(
            f"the proxy variables name {shown!r:.200}, which is not a URL ({error}); {remedy}"
        ) from error
    return proxy


def check_host(url: httpx.URL, *, is_needed: bool = False) -> None:
    """Raises ValueError for a host or port that no connection can be opened to; httpx takes some of them."""
    url.host.encode("idna")
    if ":" not in url.host and any(character.isspace() or character == "%" for character in url.host):
        raise ValueError(f"the host is {url.host!r:.80}")
    if url.port is not None and not 0 < url.port <= MAX_PORT:
        raise ValueError(f"the port is {url.port}")
    if is_needed and not url.host:
        raise ValueError("it has no host")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, by address or by name; `0.0.0.0` and `::` connect to it too."""
    address = address_of(host)
    if address is None:
        name = host.rstrip(".").lower()
        return name == "localhost" or name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def is_exempt(host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host: `*`, a name, a parent domain, an address or a network of either family."""
    return any(matches(host.rstrip(".").lower(), entry.strip().lower()) for entry in no_proxy.split(","))


def matches(host: str, entry: str) -> bool:
    entry = entry.partition("://")[2] or entry
    address = address_of(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(without_port(entry), strict=False)
        except ValueError:
            return entry == "*"
    name = without_port(entry).removeprefix("*").strip(".")
    return entry == "*" or (bool(name) and (host == name or host.endswith(f".{name}")))


def without_port(entry: str) -> str:
    """`[::1]:80` is `::1`, `host:80` is `host`; a bare IPv6 address or network has no port."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
