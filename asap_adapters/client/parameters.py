"""What users give to a client, held to its form at the door: a wrong value is a ValueError that says the right form.

Rule of this module: by the name of the parameter, so that one form is written once. No value is repeated in an error:
it may be a secret.
"""

import ssl
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from asap_core.auth.authorization import ClientCredentials
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.mdns.dnssd import Announcement
from asap_core.wire.envelope import Envelope
from asap_core.wire.manifest import Manifest
from asap_core.wire.rules import URN, number

_Fits = Callable[[Any], bool]


def check(**given: object) -> None:
    """Raise ValueError for the first of these parameters that hasn't its form; those without a form pass."""
    for name, value in given.items():
        form = _FORMS.get(name)
        if form is not None and not form[1](value):
            raise ValueError(f"{name}: expected {form[0]}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_location(value: object) -> bool:
    return isinstance(value, str | Path)


def _or_none(fits: _Fits) -> _Fits:
    return lambda value: value is None or fits(value)


def _instance(*kinds: type) -> _Fits:
    return lambda value: isinstance(value, kinds)


def _list_of(fits: _Fits) -> _Fits:
    # A text or a path is one, and its characters would be taken for several.
    return lambda value: (
        isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping) and all(map(fits, value))
    )


def _dict_of(fits: _Fits) -> _Fits:
    return lambda value: (
        isinstance(value, Mapping) and all(map(_is_text, value)) and all(fits(each) for each in value.values())
    )


def _having(*names: str) -> _Fits:
    return lambda value: all(callable(getattr(value, name, None)) for name in names) and not isinstance(value, type)


def _is_span(value: object) -> bool:
    return number(least=0).fits(value) and value != 0


def _is_wait(value: object) -> bool:
    return type(value) in (int, float) and value >= 0  # type: ignore[operator] # a number by its type


_URL: Final = "a URL such as https://agent.example, as text"
_BASE_URL: Final = "the base URL of an agent, such as https://agent.example, as text"
_LOCATION: Final = "the URL or file of a registry, as text or Path"
_FLAG: Final = ("True or False", _instance(bool))
_OPTIONAL_TEXT: Final = ("text, or None", _or_none(_is_text))

_FORMS: Final[Mapping[str, tuple[str, _Fits]]] = {
    # Of a client.
    "token": ("a token, as text", _or_none(_is_text)),
    "auth": (
        "a dict of origins with a token or ClientCredentials for each, such as {'https://agent.example': 'token'}",
        _or_none(_dict_of(_instance(str, ClientCredentials))),
    ),
    "allow_changed_agents": _FLAG,
    "trusted_keys": (
        "a dict of agents with a key or a list of keys for each, such as {'urn:asap:agent:a': 'base64…'}",
        _or_none(_dict_of(lambda value: _is_text(value) or _list_of(_is_text)(value))),
    ),
    "require_signed": _FLAG,
    "registries": (
        "a list of URLs and files, such as ['https://agents.example/registry.json']",
        _list_of(_is_location),
    ),
    "revocations": ("the URL or file of a revocation list, as text or Path, or None", _or_none(_is_location)),
    "registry_cache": ("a directory, as text or Path, or None", _or_none(_is_location)),
    "timeout": ("seconds above 0, such as 60.0", _is_span),
    "trust_env": _FLAG,
    "compress": _FLAG,
    "verify": ("an ssl.SSLContext, True or False", _instance(bool, ssl.SSLContext)),
    "transport": ("an httpx.AsyncBaseTransport, or None", _or_none(_instance(httpx.AsyncBaseTransport))),
    "resolver": ("an object with a method resolve(host, port), or None", _or_none(_having("resolve"))),
    "policy": ("a DocumentCachePolicy, or None", _or_none(_instance(DocumentCachePolicy))),
    "retry": ("a RetryPolicy, such as RetryPolicy(retries=2), or None", _or_none(_instance(RetryPolicy))),
    "breaker": ("a BreakerPolicy, such as BreakerPolicy(), or None", _or_none(_instance(BreakerPolicy))),
    "clock": ("a clock with the methods monotonic and wall, or None", _or_none(_having("monotonic", "wall"))),
    # Of its methods.
    "base_url": (_BASE_URL, _is_text),
    "base_urls": ("a list of base URLs, such as ['https://agent.example']", _list_of(_is_text)),
    "url": (_URL, _is_text),
    "location": (_LOCATION, _is_location),
    "urn": (URN.expected, URN.fits),
    "wait": ("seconds, 0 or more", _is_wait),
    "skill": _OPTIONAL_TEXT,
    "agent_id": _OPTIONAL_TEXT,
    "expect": ("an agent's URN, or None", _or_none(URN.fits)),
    "require_skill": ("the id of a skill, as text, or None", _or_none(_is_text)),
    "require_version": ("a version such as '2.1', as text, or None", _or_none(_is_text)),
    "interfaces": ("a list of names or addresses of interfaces, or None", _or_none(_list_of(_is_text))),
    "announcement": ("an Announcement, such as browse() brings", _instance(Announcement)),
    "target": ("a Manifest, or the base URL of an agent, such as 'https://agent.example'", _instance(str, Manifest)),
    "manifest": ("a Manifest, such as discover() returns", _instance(Manifest)),
    "envelope": ("an Envelope", _instance(Envelope)),
}
