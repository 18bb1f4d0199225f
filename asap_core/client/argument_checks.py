"""Checks the arguments of `Client` and its methods, by one rule for each parameter name."""

from collections.abc import Mapping
from typing import Final

from asap_core.arguments import ArgumentRule, has_methods, is_dict_of, is_instance, is_list_of, is_or_none
from asap_core.auth.authorization import ClientCredentials
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.client.options import DiscoveryOptions, RequestOptions, TrustPolicy, is_location
from asap_core.client.runtime import Runtime
from asap_core.mdns.dnssd import Announcement
from asap_core.net.outbound import OutboundPolicy
from asap_core.wire.envelope import Envelope
from asap_core.wire.manifest import Manifest
from asap_core.wire.rules import URN


def check(**given: object) -> None:
    """Raise ValueError for the first of these parameters that is invalid. Each of them has a rule."""
    for name, value in given.items():
        _RULES[name].check(name, value)


_is_text: Final = is_instance(str)


def _is_wait(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_codings(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(each, bytes) for each in value)


def _optional(kind: type, example: str) -> ArgumentRule:
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return ArgumentRule(f"{article} {kind.__name__}, such as {example}, or None", is_or_none(is_instance(kind)))


_OPTIONAL_TEXT: Final = ArgumentRule("text, or None", is_or_none(_is_text))

_RULES: Final[Mapping[str, ArgumentRule]] = {
    # Of the client.
    "token": ArgumentRule("a token, as text", is_or_none(_is_text)),
    "auth": ArgumentRule(
        "a dict of origins with a token or ClientCredentials for each, such as {'https://agent.example': 'token'}",
        is_or_none(is_dict_of(is_instance(str, ClientCredentials))),
    ),
    "outbound": _optional(OutboundPolicy, "OutboundPolicy(allow_http=['agent.lan'])"),
    "trust": _optional(TrustPolicy, "TrustPolicy(require_signed=True)"),
    "discovery": _optional(DiscoveryOptions, "DiscoveryOptions(registries=['registry.json'])"),
    "http": _optional(RequestOptions, "RequestOptions(timeout=10.0)"),
    "retry": _optional(RetryPolicy, "RetryPolicy(retries=2)"),
    "breaker": _optional(BreakerPolicy, "BreakerPolicy()"),
    "clock": ArgumentRule("a clock with the methods monotonic and wall", has_methods("monotonic", "wall")),
    # Of `bind`.
    "runtime": ArgumentRule("a Runtime, such as Runtime(clock, new_id, new_token, fraction)", is_instance(Runtime)),
    "codings": ArgumentRule("a mapping with keys of bytes, such as {b'br': Brotli}", _is_codings),
    "links": ArgumentRule("a function (interface) -> (networks, scopes)", callable),
    "verify": ArgumentRule("a function (public_key, signature, message) -> bool, or None", is_or_none(callable)),
    # Of its methods.
    "base_url": ArgumentRule("the base URL of an agent, such as https://agent.example, as text", _is_text),
    "base_urls": ArgumentRule("a list of base URLs, such as ['https://agent.example']", is_list_of(_is_text)),
    "url": ArgumentRule("a URL such as https://agent.example, as text", _is_text),
    "location": ArgumentRule("the URL or file of a registry, as text or Path", is_location),
    "urn": ArgumentRule(URN.expected, URN.fits),
    "wait": ArgumentRule("seconds, 0 or more", _is_wait),
    "skill": _OPTIONAL_TEXT,
    "agent_id": _OPTIONAL_TEXT,
    "expect": ArgumentRule("an agent's URN, or None", is_or_none(URN.fits)),
    "require_skill": ArgumentRule("the id of a skill, as text, or None", is_or_none(_is_text)),
    "require_version": ArgumentRule("a version such as '2.1', as text, or None", is_or_none(_is_text)),
    "credentials": ArgumentRule("ClientCredentials(…)", is_instance(ClientCredentials)),
    "announcement": ArgumentRule("an Announcement, such as browse() brings", is_instance(Announcement)),
    "target": ArgumentRule(
        "a Manifest, or the base URL of an agent, such as 'https://agent.example'", is_instance(str, Manifest)
    ),
    "manifest": ArgumentRule("a Manifest, such as discover() returns", is_instance(Manifest)),
    "envelope": ArgumentRule("an Envelope", is_instance(Envelope)),
}
