"""Tokens for messages, without a loop: fetched once for all, shown to the right agent, replaced at most once."""

from base64 import b64decode
from collections.abc import Callable
from typing import Any

import pytest

from asap_core.auth.client_credentials import ClientKey
from asap_core.client.programs import Expired, Stage
from asap_core.errors import Allow, NotAllowed, NoToken, Unsuitable
from asap_core.wire.manifest import AuthScheme
from tests.core.client.peers import (
    AGENT,
    ISSUER,
    LOST,
    METADATA,
    NOT_CONNECTED,
    Does,
    Key,
    Peers,
    answer,
    claims_of,
    credentials,
    error,
)
from tests.core.client.scripted import After, Driver, Run

SIGNER = ClientKey("me", "EdDSA", lambda message: message[:4])
WANTS_NONCE = {"error": "use_dpop_nonce"}


class TestGettingTokens:
    def test_a_token_is_fetched_once_and_reused(self) -> None:
        peers = Peers()
        assert [peers.token(["read"]) for _ in range(3)] == ["t1"] * 3
        assert peers.asked == ["/.well-known/openid-configuration", "/token"]
        (form,) = peers.forms
        assert (form["grant_type"], form["scope"]) == ("client_credentials", "read")
        assert b64decode(form["authorization"].removeprefix("Basic ")) == b"me:s3cret"
        assert "dpop" not in form

    def test_a_thousand_concurrent_callers_share_one_request(self) -> None:
        peers = Peers()
        peers.seconds = 1.0
        runs = [peers.start(peers.source.get(peers.prepared(), ())) for _ in range(1000)]
        assert peers.source.waiting == 1000
        peers.advance(2)
        assert {run.result().token.value for run in runs} == {"t1"}
        assert (peers.fetches, peers.source.waiting) == (1, 0)

    def test_each_scope_has_its_own_token(self) -> None:
        peers = Peers()
        assert [peers.token([scope]) for scope in ("read", "write", "read")] == ["t1", "t2", "t1"]

    def test_the_assertion_of_a_client_with_a_key_is_for_the_issuer(self) -> None:
        peers = Peers()
        peers.token(client=SIGNER)
        (form,) = peers.forms
        claims = claims_of(form["client_assertion"])
        assert (claims["aud"], claims["jti"], claims["iat"]) == (ISSUER, "token-1", 1_750_000_000)
        assert "authorization" not in form

    def test_the_assertion_is_for_the_endpoint_if_there_is_no_issuer(self) -> None:
        peers = Peers()
        peers.token(["x", "y"], client=SIGNER, issuer=None, token_endpoint=f"{ISSUER}/token", audience="a")
        assert peers.asked == ["/token"]
        (form,) = peers.forms
        assert (form["audience"], form["scope"]) == ("a", "x y")
        assert claims_of(form["client_assertion"])["aud"] == f"{ISSUER}/token"

    def test_a_token_with_fewer_scopes_is_used_and_logged(self) -> None:
        peers = Peers()
        peers.provider_does = [answer({"access_token": "t", "token_type": "bearer", "scope": "read"})]
        assert peers.token(["read", "write", "admin"]) == "t"
        (remark,) = peers.runtime.take_remarks()
        assert (remark.logger, remark.level) == ("asap.oauth", "warning")
        assert remark.text == "https://id.example:443/token gives a token without admin write"

    def test_an_invalid_issuer_is_refused_before_any_request(self) -> None:
        with pytest.raises(ValueError, match="expected as issuer a URL"):
            Peers(auth={AGENT: credentials(issuer="id.example")})


class TestDestinationsOfSecrets:
    def test_a_secret_is_sent_over_tls_only_under_any_policy(self) -> None:
        peers = Peers(allow_http=["id.example"])
        with pytest.raises(NotAllowed, match="the form contains the client's credentials"):
            peers.token(issuer=None, token_endpoint="http://id.example/token")
        assert peers.effects == []

    def test_no_secret_is_sent_to_an_endpoint_inside_the_network(self) -> None:
        peers = Peers()
        peers.metadata = {**METADATA, "token_endpoint": "http://169.254.169.254/token"}
        with pytest.raises(NotAllowed):
            peers.token()
        assert peers.forms == []

    def test_no_secret_is_sent_to_the_target_of_a_redirect(self) -> None:
        peers = Peers()
        peers.metadata = answer(status=308, location=f"{ISSUER}/moved")
        with pytest.raises(NoToken, match="redirects aren't followed; allow it with redirects=2") as caught:
            peers.token()
        assert caught.value.remedy == Allow("redirects", 2)
        assert caught.value.url == f"{ISSUER}:443"

    def test_a_provider_without_a_token_endpoint_gives_none(self) -> None:
        peers = Peers()
        peers.metadata = {"issuer": ISSUER}
        with pytest.raises(NoToken, match="expected a provider that has a token_endpoint"):
            peers.token()

    @pytest.mark.parametrize("metadata", [answer(b"{"), answer({**METADATA, "issuer": "https://evil.example"})])
    def test_no_secret_is_sent_to_an_endpoint_of_unusable_metadata(self, metadata) -> None:
        peers = Peers()
        peers.metadata = metadata
        with pytest.raises(NoToken, match="not a valid provider's metadata"):
            peers.token()
        assert peers.forms == []

    def test_a_failure_that_is_not_allowed_is_a_new_exception_each_time(self) -> None:
        peers = Peers()
        errors = []
        for _ in range(2):
            with pytest.raises(NotAllowed) as caught:
                peers.token(issuer=None, token_endpoint="http://169.254.169.254/token")
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        assert str(errors[0]) == str(errors[1])


class TestProviderFailures:
    def test_the_present_token_is_used_until_it_expires(self) -> None:
        peers = Peers()
        peers.life = 100
        assert peers.token() == "t1"
        peers.advance(90)
        peers.provider_does = [error(503)] * 9
        assert [peers.token() for _ in range(100)] == ["t1"] * 100
        assert peers.fetches == 2
        (remark,) = peers.runtime.take_remarks()
        assert remark.text == (
            "no access token from https://id.example:443/token: expected a token with HTTP 200, not HTTP 503; "
            "the token there is serves until it ends"
        )
        peers.advance(10)
        with pytest.raises(NoToken, match="HTTP 503"):
            peers.token()
        # Callers get the error, so it isn't logged.
        assert peers.runtime.take_remarks() == ()

    def test_a_slow_provider_delays_one_caller_by_a_second(self) -> None:
        peers = Peers()
        peers.life = 100
        peers.token()
        peers.advance(81)
        peers.seconds = 60.0
        began = peers.clock.monotonic()
        assert peers.token() == "t1"
        assert peers.clock.monotonic() - began == 1
        assert peers.token() == "t1"
        assert (peers.clock.monotonic() - began, peers.fetches) == (1, 2)
        # The request of the caller that no longer waits is given up.
        assert peers.runs == []

    # In the second case the metadata are fetched again too, and the leader stops waiting for them.
    @pytest.mark.parametrize(("life", "pause"), [(100, 81), (400, 371)])
    def test_a_leader_whose_present_token_is_dropped_waits_on(self, life, pause) -> None:
        peers = Peers()
        peers.life = life
        first = peers.run(peers.source.get(peers.prepared(), ()))
        peers.advance(pause)
        peers.seconds = 5.0
        leader = peers.start(peers.source.get(peers.prepared(), ()))
        # The agent refused the present token meanwhile, so that the next caller waits.
        assert peers.source.drop(first)
        waiter = peers.start(peers.source.get(peers.prepared(), ()))
        peers.advance(1)
        assert leader.end is None
        peers.advance(10)
        assert leader.result() == waiter.result() != first
        assert peers.runs == []

    def test_a_failing_provider_is_asked_less_and_less_often(self) -> None:
        peers = Peers()
        peers.provider_does = [error(500)] * 9
        for _ in range(20):
            with pytest.raises(NoToken, match="expected a token with HTTP 200, not HTTP 500"):
                peers.token()
            peers.advance(0.25)
        assert peers.fetches == 3

    def test_an_error_says_when_to_try_again(self) -> None:
        peers = Peers()
        peers.provider_does = [error(503, retry_after="3")]
        with pytest.raises(NoToken) as caught:
            peers.token()
        # 3 s and half of the jitter, rounded up.
        assert caught.value.next_try == pytest.approx(3.2)
        peers.advance(3.2)
        assert peers.token() == "t2"

    def test_a_provider_that_is_down_is_not_asked_for_a_while(self) -> None:
        peers = Peers()
        peers.provider_does = [NOT_CONNECTED]
        for _ in range(3):
            with pytest.raises(NoToken, match=r"can't connect: refused; not asked again for 1\.1 s"):
                peers.token()
        assert peers.fetches == 1

    def test_a_full_connection_pool_is_not_a_failure_of_the_provider(self) -> None:
        peers = Peers()
        peers.provider_does = [Expired(Stage.QUEUED)]
        with pytest.raises(NoToken, match="no connection became free") as caught:
            peers.token()
        assert caught.value.next_try is None
        assert peers.token() == "t2"

    @pytest.mark.parametrize(
        ("does", "words"),
        [
            (error(401, "invalid_client"), "unknown client, or wrong secret or key (invalid_client)"),
            (error(400, "evil <b>"), "it doesn't give this client what it asks for;"),
            (error(400, "invalid_grant"), "it doesn't give this client what it asks for (invalid_grant)"),
            (error(400, "invalid_scope"), "these scopes (invalid_scope)"),
            (answer(b"{"), "expected a JSON object with a token"),
            (answer({"access_token": "a b", "token_type": "bearer"}), "expected an access_token"),
            (answer(b"x" * 70_000), "expected at most 65536 bytes"),
            (answer(status=302, location="https://elsewhere.example"), "redirect"),
            (NOT_CONNECTED, "can't connect"),
            (LOST, "no access token from https://id.example:443: closed"),
            (Expired(), "nothing within 10 s"),
        ],
    )
    def test_the_error_says_what_is_wrong(self, does: Does, words: str) -> None:
        peers = Peers()
        peers.provider_does = [does]
        with pytest.raises(NoToken) as caught:
            peers.token()
        assert words in str(caught.value)
        assert str(caught.value).startswith(f"no access token from {ISSUER}")
        assert caught.value.refused == ("this client" in words or "unknown client" in words or "scopes" in words)
        assert not any(word in str(caught.value) + repr(caught.value) for word in ("evil", "s3cret"))

    def test_errors_remarks_and_reprs_show_no_secret(self) -> None:
        peers = Peers(auth={AGENT: credentials()})
        peers.life = 100
        message = peers.authorizer.credentials_for(peers.to)
        shown(peers, message)
        peers.advance(90)
        peers.provider_does = [error(401, "invalid_client")] * 2
        peers.token()
        peers.advance(10)
        with pytest.raises(NoToken) as caught:
            peers.token()
        remarks = peers.runtime.take_remarks()
        assert "invalid_client" in remarks[0].text
        told = [remarks, caught.value, str(caught.value), message, message._shown, peers.source, peers.effects]
        assert not any(secret in repr(told) for secret in ("s3cret", "'t1'", "Basic", "Bearer"))

    def test_every_caller_gets_an_exception_of_its_own(self) -> None:
        peers = Peers()
        peers.provider_does = [After(1.0, error(401, "invalid_client"))]
        runs = [peers.start(peers.source.get(peers.prepared(), ())) for _ in range(3)]
        peers.advance(2)
        errors = [run.end for run in runs]
        assert all(isinstance(each, NoToken) for each in errors)
        assert len(set(map(id, errors))) == len(set(map(str, errors))) * 3 == 3


# How a program is closed: where it runs, or by the garbage collector in another thread.
CLOSINGS: list[Callable[[Driver, Run[Any]], None]] = [Driver.close, Driver.lose]


class TestClosing:
    @pytest.mark.parametrize("closing", CLOSINGS)
    @pytest.mark.parametrize("which", range(4))
    @pytest.mark.parametrize("trouble", [None, error(500), LOST])
    @pytest.mark.parametrize("seconds", [0.0, 1.0])
    def test_a_caller_that_is_closed_at_any_moment_leaves_nothing_behind(
        self, closing, which, trouble, seconds
    ) -> None:
        turns = 0
        while True:
            peers = Peers()
            peers.seconds, peers.provider_does = seconds, [None, trouble]
            runs = [peers.start(peers.source.get(peers.prepared(), ())) for _ in range(4)]
            going = all(peers.turn() for _ in range(turns))
            if runs[which] in peers.runs:
                closing(peers, runs[which])
            while peers.turn():
                pass
            tokens = peers.source._tokens
            assert (peers.runs, tokens.waiting, len(tokens._flights)) == ([], 0, 0)
            ends = {str(run.end) for run in runs if run.end is not None}
            assert len(ends) == 1, "all have one answer or one failure"
            # The work of one leader is lost at most once.
            assert peers.fetches <= 2
            if not going:
                break
            turns += 1
        assert turns > 3

    def test_the_next_waiter_fetches_if_the_leader_is_closed(self) -> None:
        peers = Peers()
        peers.seconds = 1.0
        leader, waiter = (peers.start(peers.source.get(peers.prepared(), ())) for _ in range(2))
        peers.advance(1.5)
        peers.close(leader)
        peers.advance(1)
        assert waiter.result().token.value == "t2"
        assert leader.end is None

    def test_the_fetch_ends_if_all_callers_are_closed(self) -> None:
        peers = Peers()
        runs = [peers.start(peers.source.get(peers.prepared(), ())) for _ in range(3)]
        for run in runs:
            peers.close(run)
        assert (peers.source.waiting, len(peers.source._tokens._flights)) == (0, 0)
        assert peers.token() == "t1"

    def test_closing_changes_no_table_until_the_wakes_are_taken(self) -> None:
        peers = Peers()
        program = peers.source.get(peers.prepared(), ())
        next(program)
        program.close()
        assert peers.source.waiting == 1
        peers.runtime.take_wakes()
        assert peers.source.waiting == 0


def shown(peers: Peers, message: Any, at: float = 0.0) -> dict[str, str] | None:
    headers: dict[str, str] | None = peers.run(message.headers(lambda: peers.runtime.wall() + at))
    return headers


class TestDestinationsOfTokens:
    @pytest.mark.parametrize(
        ("base", "given"),
        [
            (AGENT, True),
            ("https://AGENT.example:443", True),
            ("https://agent.example:8443", False),
            ("https://other.example", False),
            ("https://agent.example.evil.example", False),
            ("http://agent.example", False),
        ],
    )
    def test_a_token_is_sent_to_its_origin_over_tls_only(self, base, given) -> None:
        auth = {AGENT: credentials(), "http://agent.example": credentials()}
        peers = Peers(auth=auth, allow_http=["agent.example"])
        message = peers.authorizer.credentials_for(peers.destination(base))
        assert shown(peers, message) == ({"authorization": "Bearer t1"} if given else None)
        assert peers.fetches == given

    def test_a_token_is_sent_over_plain_http_to_this_machine(self) -> None:
        peers = Peers(auth={"http://localhost": credentials()})
        message = peers.authorizer.credentials_for(peers.destination("http://localhost"))
        assert shown(peers, message) == {"authorization": "Bearer t1"}

    def test_a_message_without_credentials_is_never_sent_twice(self) -> None:
        peers = Peers()
        message = peers.authorizer.credentials_for(peers.to)
        assert shown(peers, message) is None
        assert not message.should_retry(401, [], refused=True)

    @pytest.mark.parametrize(
        ("auth", "lacks"),
        [
            (AuthScheme(schemes=["basic"]), "other ways to authenticate"),
            (AuthScheme(schemes=["bearer"], oauth2={"issuer": "https://evil.example"}), "names another"),
        ],
    )
    def test_an_agent_that_takes_no_such_token_is_unsuitable(self, auth, lacks) -> None:
        peers = Peers(auth={AGENT: credentials()})
        with pytest.raises(Unsuitable, match=lacks):
            peers.authorizer.credentials_for(peers.destination(AGENT, auth))
        assert peers.effects == []

    def test_a_token_has_the_scopes_that_the_manifest_lists(self) -> None:
        peers = Peers(auth={AGENT: credentials(scopes="read write")})
        auth = AuthScheme(schemes=["oauth2"], oauth2={"scopes": ["write", "delete"]})
        shown(peers, peers.authorizer.credentials_for(peers.destination(AGENT, auth)))
        assert [form["scope"] for form in peers.forms] == ["write"]


class TestReplacement:
    @pytest.fixture
    def peers(self) -> Peers:
        return Peers(auth={AGENT: credentials()})

    def test_a_refused_token_is_replaced_once_for_each_message(self, peers) -> None:
        message = peers.authorizer.credentials_for(peers.to)
        assert shown(peers, message) == {"authorization": "Bearer t1"}
        assert message.should_retry(401, [], refused=True)
        assert shown(peers, message) == {"authorization": "Bearer t2"}
        peers.advance(60)
        assert not message.should_retry(401, [], refused=True)

    def test_a_token_that_was_not_refused_is_not_replaced(self, peers) -> None:
        message = peers.authorizer.credentials_for(peers.to)
        shown(peers, message)
        assert not message.should_retry(403, [], refused=False)
        assert peers.token() == "t1"

    def test_nothing_is_replaced_before_a_token_was_shown(self, peers) -> None:
        assert not peers.authorizer.credentials_for(peers.to).should_retry(401, [], refused=True)

    def test_many_refused_messages_cause_one_fetch(self, peers) -> None:
        messages = [peers.authorizer.credentials_for(peers.to) for _ in range(50)]
        for message in messages:
            shown(peers, message)
        peers.seconds = 1.0
        assert all(message.should_retry(401, [], refused=True) for message in messages)
        runs = [peers.start(message.headers(peers.runtime.wall)) for message in messages]
        peers.advance(1)
        assert {run.result()["authorization"] for run in runs} == {"Bearer t2"}
        assert peers.fetches == 2

    def test_an_agent_that_refuses_every_token_causes_two_fetches_in_ten_seconds(self, peers) -> None:
        for pause, fetches in [(0.0, 2)] * 9 + [(10.0, 3)]:
            peers.advance(pause)
            message = peers.authorizer.credentials_for(peers.to)
            shown(peers, message)
            if message.should_retry(401, [], refused=True):
                shown(peers, message)
            assert peers.fetches == fetches


class TestProofsOfPossession:
    @pytest.fixture
    def peers(self) -> Peers:
        peers = Peers(auth={AGENT: credentials(dpop=Key())})
        peers.token_type = "DPoP"
        return peers

    def test_the_token_request_has_a_proof(self, peers) -> None:
        assert peers.token(dpop=Key()) == "t1"
        claims = claims_of(peers.forms[0]["dpop"])
        assert (claims["htm"], claims["htu"], claims["iat"]) == ("POST", f"{ISSUER}/token", 1_750_000_000)
        assert {"ath", "nonce"}.isdisjoint(claims)

    def test_each_attempt_has_a_proof_of_its_own(self, peers) -> None:
        message = peers.authorizer.credentials_for(peers.to)
        first, second = shown(peers, message), shown(peers, message, at=-3600.0)
        assert first is not None
        assert second is not None
        assert first["authorization"] == second["authorization"] == "DPoP t1"
        claims = [claims_of(each["dpop"]) for each in (first, second)]
        assert claims[0]["jti"] != claims[1]["jti"]
        assert claims[0]["htu"] == "https://agent.example/asap"
        assert "ath" in claims[0]
        assert claims[1]["iat"] - claims[0]["iat"] == -3600, "by the agent's clock"

    def test_a_proof_has_the_time_at_which_it_is_made(self, peers) -> None:
        peers.seconds = 4.0
        proof = shown(peers, peers.authorizer.credentials_for(peers.to))
        assert proof is not None
        assert claims_of(proof["dpop"])["iat"] == 1_750_000_008

    def test_a_token_that_is_not_bound_is_not_used(self, peers) -> None:
        peers.token_type = "Bearer"
        with pytest.raises(NoToken, match="expected token_type DPoP"):
            peers.token(dpop=Key())

    def test_the_provider_gets_the_nonce_that_it_asks_for(self, peers) -> None:
        peers.provider_does = [answer(WANTS_NONCE, 400, dpop_nonce="n-1")]
        assert peers.token(["read"], dpop=Key()) == "t2"
        assert peers.token(["write"], dpop=Key()) == "t3"
        assert [claims_of(form["dpop"]).get("nonce") for form in peers.forms] == [None, "n-1", "n-1"]
        jtis = {claims_of(form["dpop"])["jti"] for form in peers.forms}
        assert len(jtis) == 3

    def test_a_provider_that_wants_another_nonce_each_time_is_asked_twice(self, peers) -> None:
        peers.provider_does = [answer(WANTS_NONCE, 400, dpop_nonce=f"n-{number}") for number in range(9)]
        with pytest.raises(NoToken, match="use_dpop_nonce"):
            peers.token(dpop=Key())
        assert peers.fetches == 2

    def test_a_client_without_a_key_ignores_a_nonce_of_the_provider(self) -> None:
        peers = Peers()
        peers.provider_does = [answer(WANTS_NONCE, 400, dpop_nonce="n-1")]
        with pytest.raises(NoToken, match="use_dpop_nonce"):
            peers.token()
        assert peers.fetches == 1

    def test_a_client_without_a_key_ignores_a_nonce_of_the_agent(self) -> None:
        peers = Peers(auth={AGENT: credentials()})
        message = peers.authorizer.credentials_for(peers.to)
        shown(peers, message)
        asks = [("www-authenticate", 'DPoP error="use_dpop_nonce"'), ("dpop-nonce", "n-1")]
        assert not message.should_retry(401, asks, refused=False)

    def test_the_agent_gets_the_nonce_that_it_asks_for_once(self, peers) -> None:
        message = peers.authorizer.credentials_for(peers.to)
        shown(peers, message)
        asks = [("www-authenticate", 'DPoP error="use_dpop_nonce"'), ("dpop-nonce", "n-1")]
        assert message.should_retry(401, asks, refused=True)
        proof = shown(peers, message)
        assert proof is not None
        assert claims_of(proof["dpop"])["nonce"] == "n-1"
        assert proof["authorization"] == "DPoP t1", "the token wasn't what was refused"
        # Another nonce isn't a reason to ask for a third time; a refused token is replaced all the same.
        asks = [("www-authenticate", 'DPoP error="use_dpop_nonce"'), ("dpop-nonce", "n-2")]
        assert message.should_retry(401, asks, refused=True)
        assert not message.should_retry(401, asks, refused=True)
        (following,) = [shown(peers, peers.authorizer.credentials_for(peers.to))]
        assert following is not None
        assert claims_of(following["dpop"])["nonce"] == "n-2"

    def test_agent_and_provider_on_one_origin_have_nonces_of_their_own(self) -> None:
        peers = Peers(auth={ISSUER: credentials(dpop=Key())})
        peers.token_type = "DPoP"
        peers.provider_does = [answer(WANTS_NONCE, 400, dpop_nonce="provider's")]
        message = peers.authorizer.credentials_for(peers.destination(ISSUER))
        proof = shown(peers, message)
        assert proof is not None
        assert "nonce" not in claims_of(proof["dpop"])
