"""Credentials with an identity provider by others: Glewlwyd, by all methods that both support."""

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from joserfc.jwk import ECKey, RSAKey

from asap_adapters.auth.introspection import IntrospectionAuthenticator
from asap_adapters.auth.jwt import JwtAuthenticator
from asap_core import Authenticated
from asap_core.auth.claims import BySubject, TokenPolicy
from asap_core.auth.client_credentials import ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import Credential
from tests.live.command import ALICE, asap, backend, served
from tests.live.glewlwyd import CLIENT, MINE, MISSING, OTHERS, SECRET, glewlwyd, is_there

__all__ = ["backend", "served"]

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_there(), reason=MISSING)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The client's secret and its key, and a key for proofs."""
    directory: Path = tmp_path_factory.mktemp("glewlwyd")
    (directory / "secret").write_text(f"{SECRET}\n")
    for name in ("key.pem", "dpop.pem"):
        (directory / name).write_bytes(ECKey.generate_key("P-256", private=True).as_pem(private=True))
    return directory


@pytest.fixture(scope="module")
def provider(files: Path):
    with glewlwyd(files, ECKey.import_key((files / "key.pem").read_bytes())) as running:
        yield running


def client(provider, files: Path, resource: str = MINE) -> list[str]:
    return [
        "--issuer", provider.issuer, "--client-id", CLIENT, "--client-secret-file", str(files / "secret"),
        "--scope", "call", "--resource", resource,
    ]  # fmt: skip


def rules(*more: str) -> list[str]:
    return ["--audience", MINE, "--scope", "call", "--subject", f"{CLIENT}={ALICE}", *more]


def sent(url: str, *options: str):
    done = asap("send", url, "--skill", "echo", "--sender", ALICE, *options)
    return done.stdout or done.stderr


def test_a_client_is_accepted_with_every_authentication_method(served, provider, files: Path) -> None:
    url, _ = served("--oidc", provider.issuer, *rules())
    ours = client(provider, files)
    by_key = [
        "--token-endpoint", f"{provider.issuer}/token", "--client-id", CLIENT, "--client-key", str(files / "key.pem"),
        "--scope", "call", "--resource", MINE,
    ]  # fmt: skip
    for way in (ours, [*ours, "--client-auth", "post"], by_key):
        assert sent(url, *way) == 'completed: {"echoed": {}}\n'
    assert "Invalid authentication token" in sent(url, *client(provider, files, OTHERS))
    (files / "wrong").write_text("wrong")
    who = ["--issuer", provider.issuer, "--client-id", CLIENT, "--client-secret-file", str(files / "wrong")]
    assert "no access token" in sent(url, *who)


def test_tokens_bound_to_a_key_are_valid_only_with_the_key(served, provider, files: Path) -> None:
    url, _ = served("--oidc", provider.issuer, *rules("--dpop", "required", "--dpop-nonce"))
    bound = [*client(provider, files), "--dpop-key", str(files / "dpop.pem")]
    # Proofs are dated in whole seconds; one of the second of the start may have been shown before it.
    time.sleep(1.0)
    assert sent(url, *bound) == 'completed: {"echoed": {}}\n'
    assert "Invalid authentication token" in sent(url, *client(provider, files))
    stolen = json.loads(asap("token", *bound, "--json").stdout)
    assert stolen["token_type"] == "DPoP"
    assert "Invalid authentication token" in sent(url, "--token", stolen["access_token"])


def test_tokens_are_introspected_at_the_provider(served, provider, files: Path) -> None:
    secret = str(files / "secret")
    by_client = ["--subject-claim", "client_id", "--client-id", CLIENT, "--client-secret-file", secret]
    url, _ = served("--introspect", f"{provider.issuer}/introspect", *rules(*by_client))
    token = provider.token()
    assert sent(url, "--token", token) == 'completed: {"echoed": {}}\n'
    assert "Invalid authentication token" in sent(url, "--token", provider.token(OTHERS))
    assert "Invalid authentication token" in sent(url, "--token", token[:-4] + "AAAA")


AGENTS = {CLIENT: ALICE}


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_revoked_token_is_refused(provider, backend: str) -> None:
    policy = IntrospectionPolicy(
        audience=MINE, agent=BySubject(AGENTS, claim="client_id"), issuer=provider.issuer, most=0.5, most_refused=0.1
    )

    async def main() -> None:
        async with IntrospectionAuthenticator(policy, ClientSecret(CLIENT, SECRET)) as introspection:
            taken, kept = provider.token(), provider.token()
            for token in (taken, kept):
                assert await introspection.verify(Credential(token)) == Authenticated(ALICE)
            provider.revoke(taken)
            await anyio.sleep(0.6)
            assert await introspection.verify(Credential(taken)) is None
            assert await introspection.verify(Credential(kept)) == Authenticated(ALICE)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_no_client_is_refused_if_keys_change_under_load(provider, backend: str) -> None:
    first, second = (RSAKey.generate_key(2048, {"kid": f"{name}-{backend}"}, private=True) for name in ("one", "two"))
    policy = TokenPolicy(issuer=provider.issuer, audience=MINE, agent=BySubject(AGENTS), fresh_for=1.0, cool_down=0.2)

    async def main() -> None:
        provider.publish(first)
        found: list[Any] = []
        async with JwtAuthenticator(policy) as tokens:
            over = anyio.Event()

            async def load() -> None:
                while not over.is_set():
                    token = await anyio.to_thread.run_sync(provider.token)
                    found.append(await tokens.verify(Credential(token)))

            async with anyio.create_task_group() as group:
                group.start_soon(load)
                group.start_soon(load)
                await anyio.sleep(0.5)
                # Both are published before the second signs, as providers do; then the first goes.
                for keys in ((first, second), (second, first), (second,)):
                    before = len(found)
                    await anyio.to_thread.run_sync(provider.publish, *keys)
                    await anyio.sleep(1.2)
                    while len(found) < before + 4:  # noqa: ASYNC110 - as fast as the provider signs
                        await anyio.sleep(0.05)
                over.set()
        assert len(found) > 10  # some were under way while the keys changed
        assert found == [Authenticated(ALICE)] * len(found)

    anyio.run(main, backend=backend)
