"""A provider's metadata: where it's fetched, how often, and which of its endpoints may be used."""

import pytest

from asap_core.client.programs import Fetch
from asap_core.client.provider import FRESH_FOR, Provider
from asap_core.errors import BadReply, NotAllowed
from asap_core.net.addresses import Proximity
from tests.core.client.peers import ISSUER, METADATA, Peers, answer
from tests.core.client.scripted import Answer

OPENID, OAUTH = "/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"


@pytest.fixture
def peers() -> Peers:
    return Peers()


@pytest.fixture
def provider(peers) -> Provider:
    return Provider(peers.runtime, peers.requests, ISSUER)


def test_concurrent_callers_share_one_request(peers, provider) -> None:
    peers.seconds = 1.0
    runs = [peers.start(provider.endpoint("token_endpoint")) for _ in range(100)]
    peers.advance(1)
    assert {run.result().url for run in runs} == {f"{ISSUER}/token"}
    assert peers.asked == [OPENID]


def test_metadata_is_fetched_again_after_five_minutes(peers, provider) -> None:
    assert FRESH_FOR == 300.0
    for pause in (0, FRESH_FOR - 1, 1):
        peers.advance(pause)
        assert peers.run(provider.metadata()).token_endpoint == f"{ISSUER}/token"
    assert peers.asked == [OPENID] * 2


def test_the_path_of_rfc_8414_is_tried_if_that_of_openid_is_not_found(peers, provider) -> None:
    peers.metadata = None
    with pytest.raises(BadReply, match="HTTP 404"):
        peers.run(provider.metadata())
    assert peers.asked == [OPENID, OAUTH]


@pytest.mark.parametrize("status", [403, 500])
def test_the_path_of_rfc_8414_is_not_tried_after_another_failure(peers, provider, status) -> None:
    peers.metadata = Answer(status)
    with pytest.raises(BadReply, match=f"HTTP {status}"):
        peers.run(provider.metadata())
    assert peers.asked == [OPENID]


def test_a_missing_endpoint_is_reported(peers, provider) -> None:
    with pytest.raises(BadReply, match="expected a provider that has a jwks_uri"):
        peers.run(provider.endpoint("jwks_uri"))


@pytest.mark.parametrize("url", ["http://169.254.169.254/token", "https://10.0.0.1/token", "https://localhost/token"])
def test_metadata_may_not_name_an_endpoint_nearer_than_the_provider(peers, provider, url) -> None:
    peers.metadata = answer({**METADATA, "token_endpoint": url})
    with pytest.raises(NotAllowed):
        peers.run(provider.endpoint("token_endpoint"))


def test_an_issuer_of_the_user_may_be_on_any_network(peers, provider) -> None:
    peers.requests.judge(ISSUER, named_by="https://elsewhere.example/registry.json")
    peers.run(provider.metadata())
    provider.name()
    peers.advance(FRESH_FOR)
    peers.run(provider.metadata())
    reach = [effect.route.reach for effect in peers.effects if isinstance(effect, Fetch)]
    assert reach == [Proximity.INTERNET, Proximity.MACHINE]


def test_an_invalid_issuer_is_refused(peers) -> None:
    with pytest.raises(ValueError, match="expected as issuer a URL"):
        Provider(peers.runtime, peers.requests, "id.example")
