"""A credential goes only where it's meant to go, whatever the agents and the provider answer; and planted bugs."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import product

import pytest
from attrs import evolve
from hypothesis import Phase, given, settings, strategies as st

from asap_core.auth.client_credentials import ClientSecret, SecretMethod
from asap_core.client.programs import Fetch
from asap_core.client.requests import Requests
from asap_core.client.tokens import Authorizer, Destination, MessageCredentials
from asap_core.errors import AsapError
from asap_core.net.outbound import OutboundPolicy
from asap_core.net.urls import origin_of
from asap_core.wire.manifest import AuthScheme
from tests.core.client.peers import ISSUER, METADATA, Peers, answer, credentials
from tests.core.client.scripted import Answer

# Origins with a static token, with credentials, with credentials on this machine, and over plain http.
STATIC, AGENT, LOCAL, PLAIN = "https://static.example", "https://agent.example", "http://localhost", "http://p.example"
EVIL = "https://evil.example"
BASES = [
    STATIC, AGENT, LOCAL, PLAIN, EVIL,
    "https://agent.example:8443", "http://agent.example", "https://static.example.evil.example",
]  # fmt: skip
# Each client, and the origin that its tokens are for.
CLIENTS = {"a": AGENT, "b": LOCAL, "c": PLAIN}
MANIFESTS = [
    None,
    AuthScheme(schemes=["bearer"]),
    AuthScheme(schemes=["oauth2"], oauth2={"issuer": EVIL, "token_url": f"{EVIL}/token"}),
    AuthScheme(schemes=["oauth2"], oauth2={"token_endpoint": f"{EVIL}/token", "scopes": ["all"]}),
]
REFUSAL = answer({"detail": "no"}, 401, www_authenticate=f'Bearer realm="{EVIL}"')


def guarded(base: str) -> set[str]:
    """Where the secret for this origin may be shown: over plain http nowhere, except on this machine."""
    return {base} if base.startswith("https:") or base == LOCAL else set()


class World(Peers):
    """Agents and a provider that answer as they like. No request may show a secret to an origin it isn't meant for."""

    def __init__(self) -> None:
        super().__init__(
            auth={
                base: credentials(client=ClientSecret(name, f"secret-{name}", SecretMethod.POST), scopes="all")
                for name, base in CLIENTS.items()
            },
            token="user-token",
            static={STATIC: "static-token", "http://agent.example": "static-plain"},
            allow_http=["p.example", "agent.example", "id.example"],
            redirects=2,
        )
        self.script = self._check
        self.answers: list[Answer | None] = []
        # Where each secret may be shown.
        self.meant = {"user-token": set[str](), "static-token": {STATIC}, "static-plain": set[str]()}
        self.meant |= {f"secret-{name}": {ISSUER} for name in CLIENTS}

    def name(self, base: str) -> None:
        self.requests.name_origin(base)
        self.meant["user-token"] |= guarded(base)

    def _check(self, fetch: Fetch) -> Answer:
        seen = json.dumps([fetch.url, fetch.headers, (fetch.body or b"").decode("latin-1")])
        for secret, bases in self.meant.items():
            assert secret not in seen or origin_of(fetch.url) in map(origin_of, bases), f"{secret} at {fetch.url}"
        reply = self.answers.pop(0) if self.answers else None
        if reply is not None:
            return reply
        if not fetch.url.startswith(ISSUER):
            return answer({"detail": "no"}, 500)
        if fetch.method == "GET":
            return answer(METADATA)
        client = next((name for name in CLIENTS if f"secret-{name}" in seen), None)
        if client is None:  # a broken client was redirected here, without its secret
            return answer({"error": "invalid_client"}, 401)
        token = f"token-{len(self.meant)}-"
        self.meant[token] = guarded(CLIENTS[client])
        return answer({"access_token": token, "token_type": "Bearer", "expires_in": 100})


def redirects() -> Iterator[Answer]:
    for base, status in product([*BASES, ISSUER, "http://id.example"], (302, 307)):
        yield answer(status=status, location=f"{base}/token")


ANSWERS = [None, REFUSAL, *redirects(), answer(METADATA), answer({**METADATA, "issuer": EVIL})]
Action = tuple[str, str, AuthScheme | None, list[Answer | None]]
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["name", "send", "get", "pause"]),
        st.sampled_from(BASES),
        st.sampled_from(MANIFESTS),
        st.lists(st.sampled_from(ANSWERS), max_size=4),
    ),
    max_size=6,
)


def check_credentials(actions: list[Action]) -> None:
    world = World()
    for action, base, auth, answers in actions:
        world.answers = list(answers)
        with suppress(AsapError):
            match action:
                case "name":
                    world.name(base)
                case "send":
                    world.send("k", to=world.destination(base, auth))
                case "get":
                    world.run(world.requests.get(world.requests.judge(f"{base}/x"), (), 1000))
                case _:
                    world.advance(60)


@given(ACTIONS)
@settings(deadline=None)
def test_credentials_are_shown_to_nobody_else(actions) -> None:
    check_credentials(actions)


@pytest.mark.parametrize("base", BASES)
def test_each_credential_is_shown_where_it_is_meant_to_be(base) -> None:
    world = World()
    world.name(base)
    with suppress(AsapError):
        world.send(to=world.destination(base))
    shown = [dict(effect.headers).get("authorization") for effect in world.effects if isinstance(effect, Fetch)][-1]
    expected = {STATIC: "Bearer static-token", AGENT: "Bearer token-6-", LOCAL: "Bearer token-6-"}
    assert shown == expected.get(base, "Bearer user-token" if base.startswith("https") else None)


# --- planted bugs ----------------------------------------------------------------------------------------------------


def shows_any_token(patch) -> None:
    def credentials_for(self: Authorizer, to: Destination) -> MessageCredentials:
        first = next(iter(self.credentials.values()))
        return MessageCredentials(self, to, first, first.scopes)

    patch.setattr(Authorizer, "credentials_for", credentials_for)


def compares_hosts_only(patch) -> None:
    real = Authorizer.credentials_for

    def credentials_for(self: Authorizer, to: Destination) -> MessageCredentials:
        origin = next((each for each in self.credentials if f"//{to.allowed.host}:" in each), to.allowed.origin)
        return evolve(real(self, evolve(to, allowed=evolve(to.allowed, origin=origin))), to=to)

    patch.setattr(Authorizer, "credentials_for", credentials_for)


def shows_tokens_over_plain_http(patch) -> None:
    real = Authorizer.credentials_for
    patch.setattr(
        Authorizer,
        "credentials_for",
        lambda self, to: evolve(real(self, evolve(to, allowed=evolve(to.allowed, encrypted=True))), to=to),
    )


def shows_static_tokens_over_plain_http(patch) -> None:
    real = Requests._credential
    patch.setattr(Requests, "_credential", lambda self, allowed: real(self, evolve(allowed, encrypted=True)))


def shows_the_users_token_to_all(patch) -> None:
    patch.setattr(Requests, "_credential", lambda self, _: {"authorization": f"Bearer {self._token}"})


def follows_redirects_anywhere(patch) -> None:
    patch.setattr(OutboundPolicy, "judge_redirect", lambda self, _asked, location, **_: self.judge(location))


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "plant",
    [
        shows_any_token,
        compares_hosts_only,
        shows_tokens_over_plain_http,
        shows_static_tokens_over_plain_http,
        shows_the_users_token_to_all,
        follows_redirects_anywhere,
    ],
)
def test_a_planted_bug_is_caught(plant, monkeypatch) -> None:
    plant(monkeypatch)
    hunt = settings(max_examples=1000, phases=[Phase.generate], derandomize=True, database=None, deadline=None)
    with pytest.raises(AssertionError):
        hunt(given(ACTIONS)(check_credentials))()
