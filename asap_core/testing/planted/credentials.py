"""Who calls: the agent that a bearer token stands for, and the web pages that may call at all."""

import base64
from dataclasses import dataclass
from hashlib import sha256

from asap_core.testing.planted.calls import PlantedCaller
from asap_core.testing.planted.messages import PlantedOptions, PlantedRequest
from asap_core.testing.planted.refusals import CallFault
from asap_core.testing.planted.switches import Breaks


@dataclass(frozen=True)
class Credentials:
    """Judges requests by their `Authorization`, `Origin` and `Host`."""

    options: PlantedOptions
    broken: Breaks

    def is_page_allowed(self, request: PlantedRequest) -> bool:
        """Whether a web page may call: one of this agent's own origin, under a name of it (docs/security.md, 8)."""
        origins = request.values("origin")
        if not origins or self.broken("identity.foreign_page"):
            return True
        own = self.options.url
        host = own.partition("://")[2]
        if self.broken("identity.origin_null") and origins == ["null"]:
            return True
        if self.broken("identity.rebound_page"):
            return origins[0].partition("://")[2] == request.value("host")
        if self.broken("identity.host_of_page"):
            return origins == [own]
        return origins == [own] and request.value("host") == host

    def caller(self, request: PlantedRequest) -> PlantedCaller | CallFault:
        """Return who calls, or why that isn't accepted."""
        tokens = dict(self.options.tokens)
        if not tokens:
            return PlantedCaller(None, request.peer)
        values = request.values("authorization")
        if request.path == "/asap/stream" and self.broken("identity.stream_is_open"):
            return PlantedCaller(None, request.peer)
        if not values:
            if self.broken("identity.token_optional"):
                return PlantedCaller(None, request.peer)
            token = request.query.partition("token=")[2] if self.broken("identity.token_in_query") else ""
            return self._caller_of(token, tokens, request) if token else CallFault("unauthenticated")
        if len(values) > 1 and not self.broken("identity.two_credentials"):
            return CallFault("credential")
        scheme, _, token = values[0].partition(" ")
        if self.broken("identity.scheme_case") and scheme != "Bearer":
            return CallFault("unauthenticated")
        if self.broken("identity.basic") and scheme.lower() == "basic":
            return self._caller_of(_password(token), tokens, request)
        if scheme.lower() != "bearer" and not self.broken("identity.any_scheme"):
            return CallFault("unauthenticated")
        token = token.strip(" \t")
        if not token.isascii() and self.broken("identity.non_ascii_token"):
            return CallFault("internal", note="Internal server error")
        if self.broken("identity.token_padding"):
            token = token.rstrip("=")
        if not _is_token(token):
            return CallFault("credential")
        return self._caller_of(token, tokens, request)

    def _caller_of(self, token: str, tokens: dict[str, str], request: PlantedRequest) -> PlantedCaller | CallFault:
        if self.broken("identity.token_case"):
            tokens = {known.lower(): urn for known, urn in tokens.items()}
            token = token.lower()
        if self.broken("identity.token_prefix") and token:
            found = next((urn for known, urn in tokens.items() if known.startswith(token)), None)
        elif self.broken("identity.token_longer"):
            found = next((urn for known, urn in tokens.items() if token.startswith(known)), None)
        else:
            # By digest: how long it takes says nothing about a token byte by byte.
            digests = {sha256(known.encode()).digest(): urn for known, urn in tokens.items()}
            found = digests.get(sha256(token.encode()).digest())
        if found is not None:
            return PlantedCaller(found, request.peer)
        if self.broken("identity.any_token"):
            return PlantedCaller(None, request.peer)
        note = f"Invalid authentication token {token}" if self.broken("errors.echo_token") else None
        return CallFault("token", note=note)


def _is_token(text: str) -> bool:
    """Whether it has the form of a token: visible ASCII, as many characters as fit into a head (RFC 6750 §2.1)."""
    return 0 < len(text) <= 8192 and text.isascii() and text.isprintable() and " " not in text


def _password(text: str) -> str:
    """The password in the credentials of the scheme Basic (RFC 7617)."""
    try:
        return base64.b64decode(text).decode("latin-1").partition(":")[2]
    except ValueError:
        return ""
