"""Proxies and certificates from the environment. Read only with `trust_env`.

A proxy's URL is checked when a request would use it, so that an invalid one doesn't affect other requests.
"""

import errno
import os
import ssl
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final, Self
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx
from attrs import define, field

from asap_core.errors import Advice, Remedy
from asap_core.net.proxy_exemptions import is_exempt
from asap_core.net.urls import DEFAULT_PORTS, is_loopback

_PORTS: Final = {**DEFAULT_PORTS, "socks5": 1080, "socks5h": 1080}
_END_OF_PORTS: Final = 65_536
_SOCKS: Final = frozenset({"socks5", "socks5h"})
_REMEDY: Final = Advice("set it to a URL such as http://proxy.example:3128, or list this host in no_proxy")


class BadProxy(Exception):
    """The environment names an unusable proxy."""

    def __init__(self, name: str, why: str, remedy: Remedy = _REMEDY) -> None:
        super().__init__(name)
        self.reason = f"{name}_proxy names a proxy that can't be used: {why}"
        self.remedy = remedy


@define(eq=False)
class Proxies:
    """The proxies of the environment (and of the system's settings, if it has any), by scheme."""

    _urls: Mapping[str, str] = field(factory=dict, repr=False)
    _made: dict[str, httpcore.Proxy] = field(factory=dict, repr=False)

    @classmethod
    def of_environment(cls) -> Self:
        """Read the current environment."""
        return cls({scheme: url for scheme, url in getproxies().items() if scheme in ("http", "https", "all") and url})

    def name_for(self, scheme: str, host: str, port: int) -> str:
        """Return the name of the proxy for a request, or "" for none."""
        name = next((name for name in (scheme, "all") if name in self._urls), "")
        return "" if not name or is_loopback(host) or _needs_none(host, port) else name

    def proxy(self, name: str, context: ssl.SSLContext) -> httpcore.Proxy | None:
        """Return the proxy of this name. Raises `BadProxy`, which doesn't repeat the URL: it may contain a password."""
        if not name:
            return None
        if name not in self._made:
            self._made[name] = _read(name, self._urls[name].strip(), context)
        return self._made[name]


def _read(name: str, text: str, context: ssl.SSLContext) -> httpcore.Proxy:
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
        host, port, user = url.raw_host, url.port, url.userinfo
    except (httpx.InvalidURL, ValueError):  # idna's errors are ValueErrors
        raise BadProxy(name, "it isn't a URL") from None
    if url.scheme not in _PORTS:
        raise BadProxy(name, "its scheme isn't http, https or socks5")
    if not host or not (port is None or 0 < port < _END_OF_PORTS):
        raise BadProxy(name, "it has no host, or no port that can be connected to")
    if url.scheme in _SOCKS and find_spec("socksio") is None:
        raise BadProxy(
            name, "it speaks SOCKS, which needs another package", Advice("install httpx[socks], or use one over http")
        )
    login, _, password = user.decode("ascii").partition(":")
    return httpcore.Proxy(
        httpcore.URL(scheme=url.raw_scheme, host=host, port=port or _PORTS[url.scheme], target=b"/"),
        auth=(unquote(login).encode(), unquote(password).encode()) if user else None,
        ssl_context=context if url.scheme == "https" else None,
    )


def _needs_none(host: str, port: int) -> bool:
    """Return whether `no_proxy`, or the system's settings, name it."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    shown = f"[{host}]" if ":" in host else host
    return bool(proxy_bypass(host) or proxy_bypass(f"{shown}:{port}")) or is_exempt(host, port, listed)


def certificates(verify: ssl.SSLContext | bool, *, trust_env: bool) -> ssl.SSLContext:  # noqa: FBT001 - httpx's own
    """Return the TLS context. Raises OSError, which names the variable if the environment's files are unreadable."""
    try:
        return httpx.create_ssl_context(verify=verify, trust_env=trust_env)
    except OSError as error:  # ssl.SSLError is one
        named = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if trust_env and os.environ.get(name)]
        if not named:
            raise
        reason = f"the certificates that {' and '.join(named)} names can't be read"
        raise OSError(error.errno or errno.EINVAL, reason) from None
