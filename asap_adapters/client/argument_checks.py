"""Checks the arguments of `AgentClient` and its methods, by one rule for each parameter name."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx

from asap_core.arguments import ArgumentRule, has_methods, is_dict_of, is_instance, is_list_of, is_or_none
from asap_core.auth.authorization import ClientCredentials
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.mdns.dnssd import Announcement
from asap_core.wire.envelope import Envelope
from asap_core.wire.manifest import Manifest
from asap_core.wire.rules import URN, number


def check(**given: object) -> None:
    """Raise ValueError for the first of these parameters that is invalid. Those without a rule pass."""
    for name, value in given.items():
        rule = _RULES.get(name)
        if rule is not None:
            rule.check(name, value)


_is_text: Final = is_instance(str)
_is_location: Final = is_instance(str, Path)


def _is_span(value: object) -> bool:
    return number(least=0).fits(value) and value != 0


def _is_wait(value: object) -> bool:
    return type(value) in (int, float) and value >= 0  # type: ignore[operator] # a number by its type


_URL: Final = "a URL such as https://agent.example, as text"
_BASE_URL: Final = "the base URL of an agent, such as https://agent.example, as text"
_LOCATION: Final = "the URL or file of a registry, as text or Path"
_FLAG: Final = ArgumentRule("True or False", is_instance(bool))
_OPTIONAL_TEXT: Final = ArgumentRule("text, or None", is_or_none(_is_text))

_RULES: Final[Mapping[str, ArgumentRule]] = {
    # Of the client.
    "token": ArgumentRule("a token, as text", is_or_none(_is_text)),
    "auth": ArgumentRule(
        "a dict of origins with a token or ClientCredentials for each, such as {'https://agent.example': 'token'}",
        is_or_none(is_dict_of(is_instance(str, ClientCredentials))),
    ),
    "allow_changed_agents": _FLAG,
    "trusted_keys": ArgumentRule(
        "a dict of agents with a key or a list of keys for each, such as {'urn:asap:agent:a': 'base64…'}",
        is_or_none(is_dict_of(lambda value: _is_text(value) or is_list_of(_is_text)(value))),
    ),
    "require_signed": _FLAG,
    "registries": ArgumentRule(
        "a list of URLs and files, such as ['https://agents.example/registry.json']",
        is_list_of(_is_location),
    ),
    "revocations": ArgumentRule(
        "the URL or file of a revocation list, as text or Path, or None", is_or_none(_is_location)
    ),
    "registry_cache": ArgumentRule("a directory, as text or Path, or None", is_or_none(_is_location)),
    "timeout": ArgumentRule("seconds above 0, such as 60.0", _is_span),
    "trust_env": _FLAG,
    "compress": _FLAG,
    "verify": ArgumentRule("an ssl.SSLContext, True or False", is_instance(bool, ssl.SSLContext)),
    "transport": ArgumentRule(
        "an httpx.AsyncBaseTransport, or None", is_or_none(is_instance(httpx.AsyncBaseTransport))
    ),
    "resolver": ArgumentRule(
        "an object with a method resolve(host, port), or None", is_or_none(has_methods("resolve"))
    ),
    "policy": ArgumentRule("a DocumentCachePolicy, or None", is_or_none(is_instance(DocumentCachePolicy))),
    "retry": ArgumentRule(
        "a RetryPolicy, such as RetryPolicy(retries=2), or None", is_or_none(is_instance(RetryPolicy))
    ),
    "breaker": ArgumentRule(
        "a BreakerPolicy, such as BreakerPolicy(), or None", is_or_none(is_instance(BreakerPolicy))
    ),
    "clock": ArgumentRule(
        "a clock with the methods monotonic and wall, or None", is_or_none(has_methods("monotonic", "wall"))
    ),
    # Of its methods.
    "base_url": ArgumentRule(_BASE_URL, _is_text),
    "base_urls": ArgumentRule("a list of base URLs, such as ['https://agent.example']", is_list_of(_is_text)),
    "url": ArgumentRule(_URL, _is_text),
    "location": ArgumentRule(_LOCATION, _is_location),
    "urn": ArgumentRule(URN.expected, URN.fits),
    "wait": ArgumentRule("seconds, 0 or more", _is_wait),
    "skill": _OPTIONAL_TEXT,
    "agent_id": _OPTIONAL_TEXT,
    "expect": ArgumentRule("an agent's URN, or None", is_or_none(URN.fits)),
    "require_skill": ArgumentRule("the id of a skill, as text, or None", is_or_none(_is_text)),
    "require_version": ArgumentRule("a version such as '2.1', as text, or None", is_or_none(_is_text)),
    "interfaces": ArgumentRule("a list of names or addresses of interfaces, or None", is_or_none(is_list_of(_is_text))),
    "announcement": ArgumentRule("an Announcement, such as browse() brings", is_instance(Announcement)),
    "target": ArgumentRule(
        "a Manifest, or the base URL of an agent, such as 'https://agent.example'", is_instance(str, Manifest)
    ),
    "manifest": ArgumentRule("a Manifest, such as discover() returns", is_instance(Manifest)),
    "envelope": ArgumentRule("an Envelope", is_instance(Envelope)),
}
