"""Law: a web page may call only if its origin names this agent or is listed, and only by a name of this agent."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core import (
    Policy,
    ReadBody,
    Request,
    Respond,
    TakeLimit,
)
from asap_core.server.events import What
from asap_core.testing import requests
from tests.builders import agent, bound, manifest

PUBLIC = "https://agent.example/asap"
APP = "https://app.example"
NUMBERS = itertools.count()


def serve(*, url=PUBLIC, observe=None, shared_limits=(), auth=None, **policy):
    made = agent(manifest(url=url, **({} if auth is None else {"auth": auth})), **policy)
    return bound(made, observe=observe, shared_limits=shared_limits)


def ask(agent, *origins, host="agent.example", **changes):
    hosts = () if host is None else ((b"host", host.encode("latin-1")),)
    headers = (*hosts, *((b"origin", origin.encode("latin-1")) for origin in origins))
    fields = {"method": "POST", "target": "/asap", "peer": "127.0.0.1", "local": "127.0.0.1", **changes}
    return agent.open(Request(headers=(*headers, *fields.pop("more", ())), **fields))


def is_let_in(state):
    """Whether the request was accepted; every other one is refused in the same way."""
    if isinstance(state, ReadBody):
        return True
    error = json.loads(state.response.body)["error"]
    assert (state.response.status, state.response.close) == (403, True)
    assert (error["code"], error["data"]["code"]) == (-32068, "asap:admission/foreign_page")
    assert cors(state) == {}
    return False


def cors(state):
    names = (b"access-control-", b"vary")
    return {name.decode(): value.decode() for name, value in state.response.headers if name.startswith(names)}


class TestOrigins:
    @pytest.mark.parametrize(
        ("origin", "local", "fits"),
        [
            (None, "127.0.0.1", True),
            ("https://evil.example", "127.0.0.1", False),
            ("https://agent.example", "", True),
            ("https://agent.example", "127.0.0.1", True),
            ("HTTPS://Agent.Example:443", "", True),
            ("http://agent.example", "", False),
            ("https://agent.example:8443", "", False),
            ("https://agent.example.", "", False),
            ("https://agent.example.evil.example", "", False),
            ("https://evil.example/https://agent.example", "", False),
            ("https://agent.example@evil.example", "", False),
            ("https://app.example", "", True),
            ("https://other.example", "", False),
            ("http://localhost", "127.0.0.1", True),
            ("http://localhost:3000", "127.0.0.1", True),
            ("https://LOCALHOST.:3000", "::1", True),
            ("http://app.localhost:3000", "localhost", True),
            ("http://127.0.0.1:9", "127.0.0.1", True),
            ("http://127.8.7.6", "127.0.0.2", True),
            ("http://[::1]:3000", "127.0.0.1", True),
            ("http://localhost:3000", "0.0.0.0", False),
            ("http://localhost:3000", "::", False),
            ("http://localhost:3000", "192.0.2.1", False),
            ("http://localhost:3000", "", False),
            ("http://localhost:3000", "/run/agent.sock", False),
            ("http://localhost.evil.example", "127.0.0.1", False),
            ("http://notlocalhost", "127.0.0.1", False),
            ("http://127.0.0.1.evil.example", "127.0.0.1", False),
            ("http://0.0.0.0:8000", "127.0.0.1", False),
            ("http://2130706433", "127.0.0.1", False),
            ("http://192.0.2.1", "127.0.0.1", False),
            ("null", "127.0.0.1", False),
            ("", "127.0.0.1", False),
            (" http://localhost", "127.0.0.1", False),
            ("http://localhost ", "127.0.0.1", False),
            ("http://localhost/", "127.0.0.1", False),
            ("http://localhost:", "127.0.0.1", False),
            ("http://localhost:x", "127.0.0.1", False),
            ("http://localhost, http://localhost", "127.0.0.1", False),
            ("http://localhost http://localhost", "127.0.0.1", False),
            ("localhost", "127.0.0.1", False),
            ("http:localhost", "127.0.0.1", False),
            ("file://", "127.0.0.1", False),
            ("file://localhost", "127.0.0.1", False),
            ("app://localhost", "127.0.0.1", False),
            ("chrome-extension://localhost", "127.0.0.1", False),
            ("http://[::1", "127.0.0.1", False),
            ("http://[::1%lo]", "127.0.0.1", False),
            ("http://[fe80::1%25eth0]", "127.0.0.1", False),
            ("http://127.0.0.1.:3000", "127.0.0.1", True),
            ("http://-x.localhost:3000", "127.0.0.1", True),
            ("https://agent.example:00443", "", False),
            ("http://l\xf6calhost", "127.0.0.1", False),
        ],
    )
    def test_an_origin_is_accepted_if_it_is_this_agents_or_listed(self, origin, local, fits) -> None:
        agent = serve(origins=[APP])
        assert is_let_in(ask(agent, *([] if origin is None else [origin]), local=local)) is fits

    def test_two_origin_headers_are_refused(self) -> None:
        assert not is_let_in(ask(serve(origins=[APP]), APP, APP))

    def test_the_origin_of_a_public_url_on_this_machine_is_accepted(self) -> None:
        agent = serve(url="http://127.0.0.1:8000/asap")
        assert is_let_in(ask(agent, "http://127.0.0.1:8000", host="127.0.0.1:8000", local=""))
        assert not is_let_in(ask(agent, "http://127.0.0.1:8001", host="127.0.0.1:8000", local=""))

    def test_any_scheme_can_be_listed(self) -> None:
        agent = serve(origins="chrome-extension://abcdef")
        assert is_let_in(ask(agent, "chrome-extension://abcdef"))
        assert not is_let_in(ask(agent, "chrome-extension://abcdeg"))


class TestHosts:
    @pytest.mark.parametrize(
        ("host", "fits"),
        [
            ("agent.example", True),
            ("Agent.Example.:8443", True),
            ("inner.example:80", True),
            ("192.0.2.1", True),
            ("192.0.2.1:8000", True),
            ("[2001:db8::1]:8000", True),
            ("localhost:8000", True),
            ("x.localhost", True),
            ("-x.localhost", True),
            ("192.0.2.1.", False),
            ("127.0.0.1.", True),
            ("agent.example:0", True),
            ("[2001:db8::1%eth0]", False),
            ("[fe80::1%eth0]", False),
            ("[::1%25lo]:8000", False),
            ("evil.example", False),
            ("app.example", False),
            ("agent.example.evil.example", False),
            ("2130706433", False),
            ("127.1", False),
            ("", False),
            (None, False),
        ],
    )
    def test_a_host_is_an_address_or_a_name_of_this_agent(self, host, fits) -> None:
        agent = serve(origins=[APP], hosts=["Inner.example"])
        assert is_let_in(ask(agent, APP, host=host)) is fits
        assert host is None or is_let_in(ask(agent, host=host))  # whatever it is, no page asks

    @pytest.mark.parametrize("name", ["evil.example", "localhost", "agent.example"])
    def test_a_host_that_equals_the_origin_is_still_refused(self, name) -> None:
        fits = is_let_in(ask(serve(), f"http://{name}:8000", host=f"{name}:8000"))
        assert fits is (name == "localhost")

    @pytest.mark.parametrize(
        ("target", "host", "fits"),
        [
            ("http://agent.example/asap", "agent.example", True),
            ("http://agent.example:80/asap?x=://y", "agent.example", True),
            ("http://evil.example/asap", "agent.example", False),
            ("http://agent.example/asap", "evil.example", False),
            ("/asap?x=://evil.example/", "agent.example", True),
        ],
    )
    def test_an_absolute_target_names_a_host_too(self, target, host, fits) -> None:
        assert is_let_in(ask(serve(origins=[APP]), APP, target=target, host=host)) is fits


class TestJudgedRequests:
    def test_requests_for_streams_are_judged_too(self) -> None:
        assert not is_let_in(ask(serve(), "https://evil.example", target="/asap/stream"))

    @pytest.mark.parametrize("target", ["/health", "/.well-known/asap/manifest.json", "/.well-known/asap/health"])
    def test_requests_for_documents_are_not_judged(self, target) -> None:
        state = ask(serve(), "https://evil.example", method="GET", target=target)
        assert (state.response.status, cors(state)) == (200, {})

    @pytest.mark.parametrize("origins", [(), (APP,), ("https://evil.example",), ("null",)])
    def test_other_methods_are_refused_as_without_a_page(self, origins) -> None:
        state = ask(serve(), *origins, method="GET")
        assert (state.response.status, dict(state.response.headers)[b"allow"]) == (405, b"POST")

    def test_a_refused_page_uses_no_limit_and_is_reported(self) -> None:
        told: Any = []
        agent = serve(shared_limits=("peer",), peer_limits="1/minute", observe=told.append)
        assert isinstance(ask(agent), TakeLimit)
        assert isinstance(ask(agent, "https://evil.example"), Respond)
        assert [each.what for each in told] == [What.FOREIGN]

    def test_the_profile_reference_answers_403_too(self) -> None:
        assert not is_let_in(ask(serve(plain_refusals=True), "https://evil.example"))

    def test_a_refusal_repeats_nothing_of_the_request(self) -> None:
        for state in (ask(serve(), "https://evil.example"), ask(serve(origins=[APP]), APP, host="evil.example")):
            assert b"evil" not in state.response.body

    @given(requests(), st.lists(st.binary(max_size=30), max_size=2), st.binary(max_size=20), st.text(max_size=9))
    def test_any_head_gets_a_decision(self, request, origins, host, local) -> None:
        more = tuple((b"origin", origin) for origin in origins)
        headers = (*request.headers, *more, (b"host", host))
        state: Any = serve(origins=[APP]).open(
            Request(method=request.method, target=request.target, headers=headers, local=local)
        )
        assert isinstance(state, Respond | ReadBody)


class TestResponsesToListedPages:
    SAID = {
        "access-control-allow-origin": APP,
        "access-control-expose-headers": "accept-encoding, asap-version, dpop-nonce, ratelimit, ratelimit-policy, "
        "retry-after, www-authenticate",
        "vary": "origin",
    }

    def test_a_listed_page_may_read_answers_of_every_status(self) -> None:
        from asap_core import AuthScheme

        agent = serve(origins=[APP])
        unauthenticated = serve(origins=[APP], auth=AuthScheme(schemes=["bearer"]))
        limited = serve(origins=[APP], peer_limits="1/minute")
        ask(limited, APP)
        answers = {
            200: ask(agent, APP).feed(b"{}").end().calls[0],
            401: ask(unauthenticated, APP),
            405: ask(agent, APP, method="GET"),
            413: ask(agent, APP, more=((b"content-length", b"99999999"),)),
            415: ask(agent, APP, more=((b"content-encoding", b"zip"),)),
            429: ask(limited, APP),
        }
        fork = ask(agent, APP).feed(b"{}").end()
        answers[200] = fork.answered([answers[200]])
        assert {state.response.status: cors(state) for state in answers.values()} == dict.fromkeys(answers, self.SAID)

    def test_a_preflight_request_is_answered_with_what_is_allowed(self) -> None:
        agent = serve(origins=[APP], peer_limits="1/minute")
        asked = ((b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"content-type"))
        for _ in range(3):
            state = ask(agent, APP, method="OPTIONS", more=asked)
            assert (state.response.status, state.response.body, state.response.close) == (204, b"", False)
            assert b"content-length" not in dict(state.response.headers)
            assert cors(state) == {
                **self.SAID,
                "access-control-allow-methods": "POST",
                "access-control-allow-headers": "asap-version, authorization, content-encoding, content-type, dpop, "
                "x-idempotency-key",
                "access-control-max-age": "600",
            }

    @pytest.mark.parametrize(
        ("origins", "host"),
        [
            ((), "agent.example"),
            (("https://evil.example",), "agent.example"),
            (("null",), "agent.example"),
            ((APP,), "evil.example"),
            ((APP, APP), "agent.example"),
        ],
    )
    def test_a_page_that_is_not_listed_gets_no_preflight_answer(self, origins, host) -> None:
        state = ask(serve(origins=[APP]), *origins, method="OPTIONS", host=host)
        assert (state.response.status, cors(state)) == (405, {})

    def test_a_page_that_is_not_listed_may_call_and_reads_nothing(self) -> None:
        agent = serve()
        assert cors(ask(agent, "http://localhost:3000", method="OPTIONS")) == {}
        fork = ask(agent, "http://localhost:3000").feed(b"{}").end()
        assert cors(fork.answered(fork.calls)) == {}

    def test_the_origin_is_sent_as_browsers_write_it(self) -> None:
        agent = serve(origins=["HTTPS://App.Example:443", "http://[2001:DB8:0::1]:80"])
        assert agent.policy.origins == (APP, "http://[2001:db8::1]")
        assert cors(ask(agent, APP, method="OPTIONS"))["access-control-allow-origin"] == APP
        assert is_let_in(ask(agent, "http://[2001:db8::1]"))

    @pytest.mark.parametrize("target", ["/health", "/.well-known/asap/manifest.json", "/.well-known/asap/health"])
    def test_documents_have_the_headers_for_pages_and_caches(self, target) -> None:
        agent = serve(origins=[APP])
        for origins in ((), ("https://evil.example",), ("null",), (APP, APP), ("http://localhost",)):
            state = ask(agent, *origins, method="GET", target=target)
            assert (state.response.status, cors(state)) == (200, {"vary": "origin"})
        for method in ("GET", "HEAD"):
            state = ask(agent, APP, method=method, target=target)
            assert (state.response.status, cors(state)) == (200, self.SAID)

    def test_a_page_that_has_the_manifest_gets_a_304(self) -> None:
        agent, target = serve(origins=[APP]), "/.well-known/asap/manifest.json"
        tag = dict(ask(agent, method="GET", target=target).response.headers)[b"etag"]
        state = ask(agent, APP, method="GET", target=target, more=((b"if-none-match", tag),))
        assert (state.response.status, cors(state)) == (304, self.SAID)


class TestPolicy:
    @pytest.mark.parametrize(
        "bad", ["*", "null", "", "app.example", "https://app.example/", "https://", "https://a b", 5, "https://\xfc.de"]
    )
    def test_invalid_origins_are_refused(self, bad) -> None:
        with pytest.raises(ValueError, match=r"origins: expected origins such as https://app\.example"):
            Policy(origins=[bad])

    @pytest.mark.parametrize("bad", ["*", "", "a.example:80", "http://a.example", "[::1]:80", 5, "a/b", "\xfc.de"])
    def test_invalid_hosts_are_refused(self, bad) -> None:
        with pytest.raises(ValueError, match=r"hosts: expected host names such as agent\.example"):
            Policy(hosts=[bad])

    def test_origins_or_hosts_may_be_given_alone(self) -> None:
        assert Policy(origins=APP, hosts="A.example.").origins == (APP,)
        assert Policy(hosts="A.example.").hosts == ("a.example",)
