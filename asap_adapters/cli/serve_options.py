"""The options of `asap serve`, the rules for them, and the policy that they make."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import asdict, evolve, frozen

from asap_adapters.cli.caller_tokens import CALLER_RULES, CallerOptions
from asap_adapters.cli.command import (
    Excludes,
    Needs,
    OptionRule,
    choice,
    counted,
    flag,
    nested,
    option,
    repeated,
    switch,
)
from asap_adapters.cli.echo_agent import ECHO_ID
from asap_adapters.cli.options import backend_option, port_to_bind, redis_url, urn, whole_number
from asap_core.admission.policy import NoncePolicy, Policy
from asap_core.admission.ratelimit import Limit, parse_limits
from asap_core.http.pages import read_hosts, read_origins
from asap_core.http.proxies import read_networks
from asap_core.net.urls import origin_of, split_url

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
# A machine with more processors had better serve several agents.
_MAX_WORKERS: Final = 256


def _public_url(text: str) -> str:
    parts = split_url(text) if origin_of(text) is not None else None
    if parts is None or parts.username is not None or parts.query or parts.fragment:
        raise ValueError("expected a URL such as https://agent.example, without user, query, fragment")
    return text.rstrip("/")


def _workers(text: str) -> int:
    return whole_number(text, 1, _MAX_WORKERS, f"expected a number of processes, 1 to {_MAX_WORKERS}")


def _body_size(text: str) -> int:
    return whole_number(text, 1, 2**31 - 1, "expected a number of bytes, 1 to 2147483647")


def _proxy(text: str) -> str:
    return read_networks([text])[0]


def _origin(text: str) -> str:
    try:
        return read_origins([text])[0]
    except ValueError:
        raise ValueError("expected an origin such as https://app.example, without path") from None


def _host(text: str) -> str:
    try:
        return read_hosts([text])[0]
    except ValueError:
        raise ValueError("expected a name such as agent.example, without scheme and port") from None


def _limits(text: str) -> tuple[Limit, ...]:
    if text == "off":
        return ()
    try:
        limits = parse_limits(text)
    except ValueError as error:
        raise ValueError(f"{error}, or off") from None
    if not limits:
        raise ValueError("expected limits such as 10/second;100/minute, or off")
    return limits


# --- the table -------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class PolicyOptions:
    """What the agent accepts. Each field but `profile` has the name of the field of `Policy` that it sets."""

    profile: str | None = choice(
        "--profile",
        ("strict", "reference"),
        "begin with this policy; reference also accepts what older peers send: envelopes without id or timestamp, or "
        "for other agents",
        shown_default="strict, or the policy of pkg.module:agent",
    )
    nonce: str | None = choice(
        "--nonce",
        tuple(each.value for each in NoncePolicy),
        "refuse replays by the envelope's nonce (required), by the nonce or else the envelope's id (or-id), or not at "
        "all (off)",
        shown_default=NoncePolicy.OR_ID.value,
    )
    max_body: int | None = option(
        "--max-body BYTES", _body_size, "accept bodies up to this size, decompressed", shown_default="10485760"
    )
    peer_limits: tuple[Limit, ...] | None = option(
        "--rate-limit LIMITS",
        _limits,
        "limit the requests of each peer address, or off",
        shown_default="10/second;100/minute",
    )
    principal_limits: tuple[Limit, ...] | None = option(
        "--principal-limit LIMITS",
        _limits,
        "limit the requests of each authenticated agent, in the same form, or off",
        shown_default="off",
    )
    trusted_proxies: Sequence[str] = repeated(
        "--trusted-proxy CIDR",
        _proxy,
        "take the peer's address from a header if the connection comes from this proxy: an address, a network, or "
        "unix: for one that connects over a UNIX socket",
    )
    forwarded_header: str | None = choice(
        "--forwarded-header",
        ("x-forwarded-for", "forwarded"),
        "read the peer's address from this header, and never from the other",
        shown_default="x-forwarded-for",
    )
    origins: Sequence[str] = repeated(
        "--allow-origin ORIGIN",
        _origin,
        "let web pages of this origin, such as https://app.example, call the agent (CORS)",
    )
    hosts: Sequence[str] = repeated(
        "--allow-host NAME", _host, "accept this name in the header Host of a web page's request"
    )

    def applied_to(self, own: Policy) -> Policy:
        """Return `own`, the agent's policy, with the options that are given."""
        default = asdict(PolicyOptions(), recurse=False)
        changes = {name: value for name, value in asdict(self, recurse=False).items() if value != default[name]}
        base = {"strict": Policy(), "reference": Policy.reference(), None: own}[changes.pop("profile", None)]
        if self.max_body is not None:
            changes["max_bodies"] = max(base.max_bodies, self.max_body)
        return evolve(base, **changes)


@frozen(kw_only=True)
class ServeOptions:
    """The options of `asap serve`."""

    agent: str | None = option("pkg.module:agent", str, "an asap_core.Agent, with `handlers` in the same module")
    id: str | None = option(
        "--id URN", urn, "serve the echo agent, or that of --manifest, under this id", shown_default=ECHO_ID
    )
    manifest: Path | None = option(
        "--manifest FILE", Path, "serve the agent that this manifest describes; each of its skills echoes"
    )
    host: str = option(
        "--host ADDRESS", str, "bind this address; 0.0.0.0 is all of IPv4, :: all of IPv6, * both", default=DEFAULT_HOST
    )
    port: int = option("--port PORT", port_to_bind, "bind this port; 0 is any free one", default=DEFAULT_PORT)
    unix: Path | None = option(
        "--unix PATH",
        Path,
        "listen on a UNIX socket at this path instead, for a proxy; its user and group may connect",
    )
    public_url: str | None = option(
        "--public-url URL",
        _public_url,
        "publish this base URL in the manifest, for a proxy or if all addresses are bound",
        shown_default="the URL of the bound address",
    )
    tls_cert: Path | None = option("--tls-cert FILE", Path, "serve https with this certificate chain (PEM)")
    tls_key: Path | None = option(
        "--tls-key FILE",
        Path,
        "read the certificate's private key from this file (PEM, no pass phrase)",
        shown_default="in the file of --tls-cert",
    )
    client_ca: Path | None = option(
        "--client-ca FILE",
        Path,
        "let only clients connect whose certificate is issued by an authority in this file (PEM); callers authenticate "
        "as they do without it",
    )
    callers: CallerOptions = nested(CallerOptions, "who may call")
    policy: PolicyOptions = nested(PolicyOptions, "what is accepted")
    state: Path | None = option(
        "--state FILE", Path, "remember accepted envelopes in this file, over restarts and crashes"
    )
    redis: str | None = option(
        "--redis URL",
        redis_url,
        "remember accepted envelopes in Redis or Valkey, together with all other processes that serve this agent; "
        "needs the extra redis",
    )
    redis_file: Path | None = option(
        "--redis-file FILE", Path, "read the URL of --redis from this file, so that process lists don't show it"
    )
    workers: int = option(
        "--workers N",
        _workers,
        "serve with this many processes, each replaced if it dies; several share their memory in Redis",
        default=1,
    )
    mdns: bool = switch("--mdns", "announce the agent on the local network")
    mdns_interface: Sequence[str] = repeated(
        "--mdns-interface NAME", str, "announce it on this interface only, by name or address"
    )
    metrics: bool = flag("--metrics", "show counters at /asap/metrics, in Prometheus's format, to anyone who asks")
    access_log: bool = flag(
        "--access-log",
        "write a line for each response to stderr: time, peer, method, path, status, bytes, duration",
    )
    verbose: int = counted("--verbose -v", "log refused requests; given twice, accepted ones too")
    backend: str = backend_option()
    uvloop: bool = flag("--uvloop", "run asyncio on uvloop; needs the extra uvloop and --backend asyncio")


_REDIS: Final = ["--redis", "--redis-file"]
SERVE_RULES: Final[Sequence[OptionRule]] = (
    Excludes("pkg.module:agent", ["--manifest", "--id"]),
    Excludes("--redis", ["--redis-file"]),
    Excludes("--state", _REDIS, "only one of them can decide what was seen before"),
    Needs("--workers", _REDIS, "without a common memory, each process would accept the same envelope once"),
    Excludes("--unix", ["--host", "--port", "--mdns"]),
    Needs("--unix", ["--public-url"], "the manifest must state one URL to call"),
    Needs("--tls-key", ["--tls-cert"]),
    Needs("--client-ca", ["--tls-cert"]),
    *CALLER_RULES,
)
