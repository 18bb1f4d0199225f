"""HTTP requests within the outbound policy: where they go, with which credential, and what comes of them."""

import gzip
import json
import traceback
from collections.abc import Mapping
from typing import Any

import pytest

from asap_core.auth.client_credentials import PostForm
from asap_core.client.body_reader import WholeParser
from asap_core.client.programs import Barred, Expired, Fetch, Program, Received, Stage, Unanswered, step
from asap_core.client.requests import MAX_REPLY, HttpAnswer, Requests, announced_addresses
from asap_core.errors import Advice, Allow, BadReply, InvalidDocument, NotAllowed, Problem, TimedOut, Unreachable
from asap_core.http.messages import Gzip
from asap_core.net.addresses import Proximity
from asap_core.net.outbound import Allowed, Dial, OutboundPolicy
from asap_core.wire.json import write_json
from tests.core.client.scripted import HELD, After, Answer, Driver

URL = "https://agent.example/x"
REGISTRY = "https://registry.example/lite.json"
PUBLIC, OTHER, INSIDE = "8.8.8.8", "2606:4700::1", "10.0.0.5"


class World(Driver):
    """Servers that give these replies in turn, the last one again and again; and a client of theirs."""

    def __init__(self, *replies: Any, token: str | None = None, **options: Any) -> None:
        super().__init__(lambda _: self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])
        self.replies = list(replies) or [Answer(body=b"{}")]
        names = ("auth", "timeout", "compress", "codings", "named")
        own = {name: options.pop(name) for name in names if name in options}
        self.requests = Requests(self.runtime, policy=OutboundPolicy(**options), token=token, **own)

    @property
    def fetches(self) -> list[Fetch]:
        return [effect for effect in self.effects if isinstance(effect, Fetch)]

    @property
    def last(self) -> Fetch:
        return self.fetches[-1]

    @property
    def fields(self) -> dict[str, str]:
        """The header fields of the last request."""
        assert len(dict(self.last.headers)) == len(self.last.headers), "a field was sent twice"
        return dict(self.last.headers)

    def get(self, url: str = URL, headers: Any = (), *, limit: int = 1_000, **judging: Any) -> HttpAnswer:
        return self.run(self.requests.get(self.requests.judge(url, **judging), headers, limit))

    def post(
        self, url: str = URL, document: object = None, headers: Mapping[str, str] = {}, **options: Any
    ) -> HttpAnswer:
        return self.run(self.requests.post(self.requests.judge(url), document or {}, headers, **options))


class TestAGet:
    def test_a_get_requests_json_with_the_headers_of_the_caller(self) -> None:
        world = World(Answer(200, (("ETag", '"1"'),), b"[]"))
        assert world.get(headers=[("if-none-match", '"0"')]) == HttpAnswer(200, (("etag", '"1"'),), b"[]")
        assert (world.last.method, world.last.url, world.last.body) == ("GET", URL, None)
        assert world.last.headers == (
            ("user-agent", "asap-sansio"),
            ("accept", "application/json"),
            ("accept-encoding", "gzip"),
            ("if-none-match", '"0"'),
        )

    def test_a_get_lists_the_codings_that_it_can_read(self) -> None:
        world = World(codings={b"br": Gzip})
        world.get()
        assert world.fields["accept-encoding"] == "gzip, br"

    def test_a_get_sends_no_token(self) -> None:
        world = World(token="secret")
        world.requests.name_origin(URL)
        world.get()
        assert "authorization" not in world.fields

    @pytest.mark.parametrize(("timeout", "seconds", "least"), [(60.0, 10.0, 10.0), (5.0, 10.0, 5.0), (60.0, 2.0, 2.0)])
    def test_the_shorter_of_two_time_limits_counts(self, timeout, seconds, least) -> None:
        world = World(timeout=timeout)
        world.run(world.requests.get(world.requests.judge(URL), (), 10, seconds=seconds))
        assert world.last.seconds == least
        assert world.last.patience == pytest.approx(0.9 * least)

    def test_a_document_has_ten_seconds(self) -> None:
        world = World()
        world.get()
        assert world.last.seconds == 10.0

    def test_a_parser_gets_the_document_and_nothing_else(self) -> None:
        world = World(Answer(503, body=b"sorry"), Answer(200, body=b"[1]"))
        parser = WholeParser(json.loads)
        program = world.requests.get(world.requests.judge(URL), (), 10, parser=parser)
        assert world.run(program) == HttpAnswer(503, (), b"")
        assert world.run(world.requests.get(world.requests.judge(URL), (), 10, parser=parser)).body == b""
        assert parser.close() == [1]

    def test_the_caller_chooses_which_statuses_have_the_document(self) -> None:
        for status, body in ((503, b"down"), (404, b"")):
            world = World(Answer(status, body=b"down"))
            program = world.requests.get(world.requests.judge(URL), (), 10, statuses={200, 503})
            assert world.run(program) == HttpAnswer(status, (), body)

    def test_a_refusal_of_a_parser_is_raised_as_a_copy(self) -> None:
        refused = InvalidDocument("a list", (Problem((), "a list"),))

        class Refusing(WholeParser[bytes]):
            def feed(self, data: bytes) -> None:
                raise refused

        world = World()
        program = world.requests.get(world.requests.judge(URL), (), 10, parser=Refusing(bytes))
        with pytest.raises(InvalidDocument, match="expected a list") as caught:
            world.run(program)
        assert caught.value is not refused


class TestAPost:
    def test_a_post_sends_json(self) -> None:
        world = World(Answer(418, body=b"no"))
        assert world.post(document={"a": 1}, headers={"x-key": "k"}) == HttpAnswer(418, (), b"no")
        assert (world.last.method, world.last.url, world.last.body) == ("POST", URL, b'{"a":1}')
        fields = world.fields
        assert fields.pop("asap-version")
        assert fields == {
            "user-agent": "asap-sansio",
            "accept": "application/json",
            "content-type": "application/json",
            "accept-encoding": "gzip",
            "x-key": "k",
        }
        assert (world.last.seconds, world.last.patience) == (60.0, 54.0)

    def test_a_large_post_is_compressed(self) -> None:
        large, small = {"a": "b" * 1_016}, {"a": "b" * 1_015}
        world = World()
        world.post(document=large)
        assert world.fields["content-encoding"] == "gzip"
        assert world.last.body == gzip.compress(write_json(large), 6, mtime=0)
        world.post(document=small)
        assert "content-encoding" not in world.fields
        world.post(document=large, compress=False)
        assert "content-encoding" not in world.fields

    def test_no_post_is_compressed_if_the_client_never_compresses(self) -> None:
        world = World(compress=False)
        world.post(document={"a": "b" * 5_000})
        assert "content-encoding" not in world.fields

    def test_the_same_message_is_sent_as_the_same_bytes(self) -> None:
        world = World()
        for _ in range(2):
            world.post(document={"a": "b" * 5_000})
            world.advance(5)
        assert world.fetches[0].body == world.fetches[1].body


FORM = PostForm((("grant_type", "client_credentials"), ("scope", "a b&c")), (("authorization", "Basic eA=="),))


class TestAForm:
    def send(self, world: World, url: str = "https://id.example/token", **options: Any) -> HttpAnswer:
        return world.run(world.requests.post_form(world.requests.judge(url), FORM, **options))

    def test_a_form_is_sent_with_its_own_credential_only(self) -> None:
        world = World(Answer(400, body=b"{}"), token="secret", auth={"https://id.example": "secret"})
        world.requests.name_origin("https://id.example")
        assert self.send(world, headers={"dpop": "proof"}) == HttpAnswer(400, (), b"{}")
        assert world.last.body == b"grant_type=client_credentials&scope=a+b%26c"
        assert world.fields == {
            "user-agent": "asap-sansio",
            "accept": "application/json",
            "content-type": "application/x-www-form-urlencoded",
            "accept-encoding": "gzip",
            "authorization": "Basic eA==",
            "dpop": "proof",
        }
        assert world.last.seconds == 10.0

    def test_a_form_is_sent_unencrypted_only_to_this_machine(self) -> None:
        world = World(allow_http=["id.example"])
        with pytest.raises(NotAllowed, match="the form contains the client's credentials; use https") as caught:
            self.send(world, "http://id.example/token?secret")
        assert "secret" not in str(caught.value)
        assert world.fetches == []
        assert self.send(world, "http://localhost:8000/token").status == 200

    def test_the_response_to_a_form_is_bounded(self) -> None:
        world = World(Answer(body=b"x" * 65_537))
        with pytest.raises(BadReply, match="expected at most 65536 bytes"):
            self.send(world)
        with pytest.raises(BadReply, match="expected at most 9 bytes"):
            self.send(world, limit=9)


class TestToken:
    """Goes to the origins that the caller named, and further ones to theirs."""

    def shown(self, world: World, url: str) -> str | None:
        world.post(url)
        return world.fields.get("authorization")

    def test_a_token_is_sent_to_named_origins_only(self) -> None:
        world = World(token="mine", allow_http=["agent.example"])
        world.requests.name_origin("https://AGENT.example:443/asap#x")
        assert self.shown(world, URL) == "Bearer mine"
        for url in ("https://agent.example:8443/", "https://other.example/", "http://agent.example/"):
            assert self.shown(world, url) is None

    def test_each_origin_has_a_token_of_its_own(self) -> None:
        world = World(token="mine", auth={"https://agent.example": "its"})
        assert self.shown(world, URL) == "Bearer its"
        world.requests.name_origin(URL)
        world.requests.name_origin(URL)
        assert self.shown(world, URL) == "Bearer its"
        assert self.shown(world, "https://other.example/") is None

    def test_a_token_is_sent_unencrypted_only_to_this_machine(self) -> None:
        world = World(token="mine", allow_http=["agent.example"])
        for url in ("http://agent.example/", "http://localhost:8000/"):
            world.requests.name_origin(url)
        assert self.shown(world, "http://agent.example/") is None
        assert self.shown(world, "http://localhost:8000/") == "Bearer mine"

    def test_an_ipv6_zone_does_not_hide_the_origin(self) -> None:
        world = World(token="mine", allow_networks=["fe80::/10"])
        world.requests.name_origin("https://[fe80::1%25eth0]:8443/")
        assert self.shown(world, "https://[fe80::1%eth0]:8443/") == "Bearer mine"

    def test_an_invalid_url_names_no_origin(self) -> None:
        world = World(token="mine")
        world.requests.name_origin("agent.example")
        assert self.shown(world, URL) is None

    def test_a_credential_of_the_caller_replaces_the_token(self) -> None:
        world = World(token="mine")
        world.requests.name_origin(URL)
        world.post(credential={"authorization": "DPoP its"})
        assert world.fields["authorization"] == "DPoP its"
        world.post(credential={})
        assert "authorization" not in world.fields

    @pytest.mark.parametrize(
        "options", [{"token": "a b"}, {"token": ""}, {"auth": {"https://a.example": "é"}}, {"auth": {"a.example": "x"}}]
    )
    def test_an_invalid_token_is_refused_at_once(self, options) -> None:
        with pytest.raises(ValueError, match="expected"):
            World(**options)


class TestDestinations:
    def test_a_url_that_the_policy_refuses_is_not_requested(self) -> None:
        with pytest.raises(NotAllowed, match="it isn't encrypted; use https, or allow it with allow_http") as caught:
            World().get("http://agent.example/?secret")
        assert isinstance(caught.value.remedy, Allow)
        assert "secret" not in str(caught.value)

    def test_addresses_are_judged_by_the_route(self) -> None:
        world = World()
        world.get("https://agent.example:8443/x")
        route = world.last.route
        assert (route.host, route.port, route.scheme, route.announced) == ("agent.example", 8443, "https", ())
        assert route.choose([PUBLIC, OTHER]) == Dial((PUBLIC, OTHER))
        assert isinstance(route.choose([PUBLIC, INSIDE]), Barred)

    @pytest.mark.parametrize(("url", "port"), [(URL, 443), ("http://localhost/", 80), ("https://[2606:4700::1]/", 443)])
    def test_the_default_port_is_that_of_the_scheme(self, url, port) -> None:
        world = World()
        world.get(url)
        assert world.last.route.port == port

    def test_a_zone_is_not_sent_in_the_host_header(self) -> None:
        world = World(allow_networks=["fe80::/10"])
        world.get("https://[fe80::1%eth0]:8443/")
        assert world.fields["host"] == "[fe80::1]:8443"
        assert world.last.route.host == "fe80::1%eth0"
        world.get("https://[2606:4700::1]/")
        assert "host" not in world.fields

    def test_a_request_that_a_driver_bars_raises_not_allowed(self) -> None:
        world = World(Barred("its host is not a valid host name", Advice("expected another")))
        with pytest.raises(NotAllowed, match="is not requested: its host is not a valid host name; expected another"):
            world.get()

    def reach(self, world: World, url: str = URL, **judging: Any) -> Proximity:
        world.get(url, **judging)
        return world.last.route.reach

    def test_urls_in_a_document_lead_no_nearer_than_its_source(self) -> None:
        world = World(allow_networks=["10.0.0.0/8"])
        assert self.reach(world, named_by=REGISTRY) is Proximity.INTERNET
        assert self.reach(world) is Proximity.INTERNET
        with pytest.raises(NotAllowed, match="a document from a more distant network may not name it"):
            world.get(f"https://{INSIDE}/", named_by=REGISTRY)
        with pytest.raises(NotAllowed, match="a document from a more distant network may not name it"):
            world.get(f"https://{INSIDE}/")
        for url in ("https://agent.example", f"https://{INSIDE}"):
            world.requests.name_origin(url)
        assert self.reach(world, f"https://{INSIDE}/") is self.reach(world) is Proximity.MACHINE

    def test_the_proximity_of_a_source_is_learned_from_the_connection(self) -> None:
        world = World(Answer(address=INSIDE), allow_networks=["10.0.0.0/8"])
        world.get(REGISTRY)
        assert world.requests.proximity_of(REGISTRY) is Proximity.NETWORK
        assert self.reach(world, named_by=REGISTRY) is Proximity.NETWORK

    def test_the_proximity_of_a_source_is_recalled_from_an_earlier_process(self) -> None:
        world = World(allow_networks=["10.0.0.0/8"])
        world.requests.recall(REGISTRY, Proximity.NETWORK)
        assert self.reach(world, named_by=REGISTRY) is Proximity.NETWORK

    def test_a_connection_to_an_announced_address_does_not_change_the_proximity(self) -> None:
        world = World(Answer(address="192.168.1.9"))
        allowed = world.requests.judge("http://agent.local:8000/", announced=("192.168.1.9",))
        world.run(world.requests.get(allowed, (), 10))
        assert world.last.route.choose([PUBLIC]) == Dial(("192.168.1.9",))
        assert world.requests.proximity_of("http://agent.local:8000/") is Proximity.INTERNET

    @pytest.mark.parametrize(
        "options",
        [{"allow_endpoints": ["https://agent.example"]}, {"auth": {"https://agent.example": "t"}}, {"named": [URL]}],
    )
    def test_configured_origins_may_be_on_any_network(self, options) -> None:
        world = World(**options)
        assert self.reach(world, named_by=REGISTRY) is Proximity.MACHINE
        assert self.reach(world, "https://other.example/", named_by=REGISTRY) is Proximity.INTERNET

    def test_a_file_that_the_user_configured_names_no_server(self) -> None:
        assert self.reach(World(named=["/etc/registry.json"]), named_by=REGISTRY) is Proximity.INTERNET


class TestEndpoints:
    def test_an_endpoint_is_at_the_origin_of_its_manifest(self) -> None:
        requests = World().requests
        assert requests.judge_endpoint(URL, "https://agent.example:443").url == URL
        with pytest.raises(NotAllowed, match="the manifest that names it came from https://other"):
            requests.judge_endpoint(URL, "https://other.example:443")

    def test_an_endpoint_may_be_anywhere_if_the_caller_made_the_manifest(self) -> None:
        assert World().requests.judge_endpoint(URL, None).url == URL

    def test_an_endpoint_that_the_policy_refuses_is_refused(self) -> None:
        with pytest.raises(NotAllowed, match="isn't encrypted"):
            World().requests.judge_endpoint("http://agent.example/", None)

    def test_an_announcement_applies_to_its_own_origin_only(self) -> None:
        requests = World().requests
        origin, addresses = "http://agent.local:8000", ("192.168.1.9",)
        assert requests.judge_endpoint(f"{origin}/asap", origin, addresses).addresses == addresses
        with pytest.raises(NotAllowed):
            requests.judge_endpoint("http://agent.local:9000/asap", origin, addresses)
        requests = World(allow_endpoints=["http://agent.local:9000"]).requests
        with pytest.raises(NotAllowed, match="isn't encrypted"):
            requests.judge_endpoint("http://agent.local:9000/asap", origin, addresses)


class TestRedirects:
    @staticmethod
    def to(location: str | None, status: int = 302) -> Answer:
        return Answer(status, () if location is None else (("Location", location),), b"{}")

    def test_redirects_are_refused_and_the_error_says_where_they_point(self) -> None:
        world = World(self.to("http://u:hunter2@169.254.169.254/latest?hunter2"))
        with pytest.raises(
            BadReply, match=r"redirects to http://169\.254\.169\.254:80/latest; redirects aren't"
        ) as caught:
            world.get()
        assert caught.value.status == 302
        assert "hunter2" not in str(caught.value)
        assert len(world.fetches) == 1

    def test_redirects_within_the_origin_can_be_allowed(self) -> None:
        with pytest.raises(BadReply, match=r"allow it with redirects=2"):
            World(self.to("/y")).get()
        world = World(self.to("/y", 301), self.to("z", 307), Answer(body=b"[]"), redirects=2)
        assert world.get(headers=[("x", "y")]).body == b"[]"
        assert [fetch.url for fetch in world.fetches] == [f"https://agent.example/{path}" for path in "xyz"]
        assert {fetch.headers for fetch in world.fetches} == {world.last.headers}

    def test_a_loop_of_redirects_ends(self) -> None:
        world = World(self.to("/x"), redirects=2)
        with pytest.raises(BadReply, match="no more than 2 redirects"):
            world.get()
        assert len(world.fetches) == 3

    @pytest.mark.parametrize("second", ["/z", "/y", "https://other.example/"])
    def test_a_redirect_to_several_urls_is_not_followed(self, second: str) -> None:
        world = World(Answer(302, (("Location", "/y"), ("location", second)), b""), Answer(body=b"[]"), redirects=2)
        with pytest.raises(BadReply, match="redirects to what isn't a web URL"):
            world.get()
        assert len(world.fetches) == 1

    def test_all_redirects_of_a_request_share_its_time_limit(self) -> None:
        world = World(After(4.0, self.to("/y")), After(5.5, self.to("/z")), HELD, redirects=2)
        with pytest.raises(TimedOut, match="nothing within 10 s"):
            world.get()
        assert [(fetch.seconds, fetch.patience) for fetch in world.fetches] == [(10.0, 9.0), (6.0, 5.0), (0.5, 0.0)]
        assert world.clock.monotonic() == 10.0

    @pytest.mark.parametrize(
        "answer", [to(None), Answer(302, (("link", "/y"),)), to("/y", 304), to("/y", 200), to("/y", 300)]
    )
    def test_a_response_that_is_no_redirect_is_returned(self, answer: Answer) -> None:
        world = World(answer, redirects=2)
        assert world.get().status == answer.status
        assert len(world.fetches) == 1

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_redirects_of_a_post_are_not_followed(self, status: int) -> None:
        world = World(self.to("/y", status), redirects=2)
        with pytest.raises(BadReply, match="redirects aren't followed by a POST"):
            world.post()
        assert len(world.fetches) == 1


class TestFailures:
    """The type of each error, and whether it says that anything was sent."""

    @pytest.mark.parametrize(
        ("outcome", "kind", "reason", "sent", "crowded"),
        [
            (Unanswered(Stage.QUEUED, "why"), Unreachable, "no connection became free within 10 s: ", False, True),
            (Expired(Stage.QUEUED), Unreachable, "no connection became free within 10 s: ", False, True),
            (
                Unanswered(Stage.CONNECTING, "can't connect: refused"),
                Unreachable,
                "can't connect: refused",
                False,
                False,
            ),
            (Expired(Stage.CONNECTING), Unreachable, "can't connect within 10 s", False, False),
            (Unanswered(Stage.SENT, "it broke"), Unreachable, "it broke", True, False),
            (Unanswered(Stage.SENT, "it broke", silent=True), Unreachable, "it broke", True, False),
            (Expired(Stage.SENT), TimedOut, "nothing within 10 s", True, False),
            (Unanswered(Stage.ANSWERED, "it broke"), Unreachable, "it broke", True, False),
            (Expired(Stage.ANSWERED), TimedOut, "no complete answer within 10 s", True, False),
        ],
    )
    def test_a_failure_at_each_stage_says_if_the_request_was_sent(self, outcome, kind, reason, sent, crowded) -> None:
        with pytest.raises(Unreachable) as caught:
            World(outcome).get(f"{URL}?secret")
        error = caught.value
        assert type(error) is kind
        assert error.reason.startswith(reason)
        assert error.reason == reason or crowded
        assert (error.url, error.sent, error.crowded) == ("https://agent.example:443/x", sent, crowded)

    @pytest.mark.parametrize("silent", [True, False])
    @pytest.mark.parametrize("url", ["http://localhost:8000/", URL])
    def test_a_silent_server_may_speak_tls(self, url: str, silent: bool) -> None:
        with pytest.raises(Unreachable) as caught:
            World(Unanswered(Stage.SENT, "it broke", silent=silent)).get(url)
        told = caught.value.reason.endswith("it broke; if it speaks TLS, use https://")
        assert told is (silent and url.startswith("http://"))

    def test_a_server_that_requires_tls_by_426_gets_a_hint_to_use_https(self) -> None:
        world = World(Answer(426, (("Upgrade", "h2c"), ("Upgrade", "TLS/1.2, HTTP/1.1"))))
        with pytest.raises(Unreachable, match="can't connect: it speaks TLS there: use https://") as caught:
            world.get("http://localhost:8000/")
        assert not caught.value.sent
        for answer in (
            Answer(426, (("Upgrade", "h2c"), ("server", "TLS"))),
            Answer(426),
            Answer(400, (("Upgrade", "TLS/1.2"),)),
        ):
            assert World(answer).get().status == answer.status

    def test_a_driver_that_answers_before_it_fed_the_reader_is_told(self) -> None:
        """The peer isn't blamed."""
        with pytest.raises(RuntimeError, match=r"a driver answered Received before BodyReader\.begin"):
            World(Received()).get()

    def test_a_driver_that_answers_before_the_end_of_the_body_is_told(self) -> None:
        """Half a document isn't taken for a whole one."""
        requests = World().requests
        program = requests.get(requests.judge(URL), (), 1_000)
        asked = step(program)
        assert isinstance(asked, Fetch)
        asked.reader.begin(200, [])
        asked.reader.feed(b"{")
        with pytest.raises(RuntimeError, match=r"a driver answered Received before BodyReader\.end"):
            step(program, Received())

    def test_a_timeout_names_the_limit_of_the_caller(self) -> None:
        with pytest.raises(TimedOut, match=r"nothing within 2\.5 s"):
            World(Expired(), timeout=2.5).post()


class TestAnswers:
    """Which ones are usable."""

    @pytest.mark.parametrize("failure", [Unanswered(Stage.ANSWERED, "it broke"), Expired(Stage.ANSWERED)])
    def test_the_status_of_an_error_is_enough(self, failure) -> None:
        broken = Answer(503, (("retry-after", "9"),), b"so", failure=failure)
        assert World(broken).get() == HttpAnswer(503, (("retry-after", "9"),), b"")
        assert World(broken).post() == HttpAnswer(503, (("retry-after", "9"),), b"")

    def test_a_document_must_be_complete(self) -> None:
        with pytest.raises(Unreachable, match="it broke"):
            World(Answer(200, body=b"{", failure=Unanswered(Stage.ANSWERED, "it broke"))).get()

    def test_a_head_is_bounded(self) -> None:
        fits = (("x", "y"),) * 100
        assert World(Answer(headers=fits)).get().headers == fits
        for headers in ((*fits, ("x", "y")), (("x" * 6, "y" * 65_531),)):
            with pytest.raises(BadReply, match="expected at most 100 header fields, of 65536 bytes together") as caught:
                World(Answer(404, headers)).get()
            assert caught.value.status == 404
        assert World(Answer(headers=(("x" * 6, "y" * 65_530),))).get().status == 200

    def test_a_document_is_bounded(self) -> None:
        assert World(Answer(body=b"x" * 1_000)).get().body == b"x" * 1_000
        with pytest.raises(BadReply, match="expected at most 1000 bytes"):
            World(Answer(body=b"x" * 1_001)).get()

    def test_a_document_must_be_in_a_known_coding(self) -> None:
        answer = Answer(headers=(("content-encoding", "br"),), body=b"x")
        with pytest.raises(BadReply, match="expected a body in gzip, br, or plain"):
            World(answer).get()
        assert World(answer, codings={b"br": Gzip}, timeout=1).requests is not None
        packed = Answer(headers=(("content-encoding", "br"),), body=gzip.compress(b"hello"))
        assert World(packed, codings={b"br": Gzip}).get().body == b"hello"

    def test_the_body_of_an_error_is_kept_for_a_post_only(self) -> None:
        assert World(Answer(500, body=b"why")).get().body == b""
        assert World(Answer(500, body=b"why")).post().body == b"why"

    @pytest.mark.parametrize("status", [199, 300])
    def test_the_body_of_an_error_may_be_unreadable(self, status: int) -> None:
        assert World(Answer(status, (("content-encoding", "br"),), b"x")).post().body == b""

    def test_a_reply_is_bounded(self) -> None:
        assert MAX_REPLY == 10 * 1024 * 1024
        with pytest.raises(BadReply, match="expected at most 10485760 bytes"):
            World(Answer(body=b"x" * (MAX_REPLY + 1))).post()


class TestTheLink:
    NETWORKS = ["192.168.1.2/24", "fe80::2/64"]

    def found(self, host: str, *addresses: str, networks: Any = NETWORKS, scopes: Any = ()) -> tuple[str, ...]:
        return announced_addresses(host, addresses, networks=networks, scopes=scopes)

    def test_a_host_is_at_its_announced_address_on_the_link(self) -> None:
        assert self.found("agent.local", "10.9.9.9", "192.168.1.9") == ("192.168.1.9",)
        assert self.found("Agent.LOCAL.", "192.168.1.9") == ("192.168.1.9",)

    def test_an_address_literal_gets_its_scope(self) -> None:
        found = ["192.168.1.9", "fe80::9%eth0", "fe80::9%eth9"]
        assert self.found("fe80::9", *found, scopes={"eth0"}) == ("fe80::9%eth0",)
        assert self.found("192.168.1.9", *found) == ("192.168.1.9",)

    @pytest.mark.parametrize(
        ("host", "addresses"),
        [
            ("agent.local", ["10.9.9.9"]),
            ("agent.local", []),
            ("agent.local", ["169.254.169.254"]),
            ("192.168.1.8", ["192.168.1.9"]),
            ("10.9.9.9", ["10.9.9.9"]),
            ("agent.example", ["192.168.1.9"]),
        ],
    )
    def test_an_announced_address_that_is_not_on_the_link_is_refused(self, host, addresses) -> None:
        with pytest.raises(NotAllowed, match="announced on the local network, and isn't on it; request it by its URL"):
            self.found(host, *addresses)

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "agent.local"])
    def test_loopback_is_accepted_on_the_loopback_link_only(self, host) -> None:
        with pytest.raises(NotAllowed):  # a neighbour's word for it
            self.found(host, "127.0.0.1")
        assert self.found(host, "127.0.0.1", networks=["127.0.0.1/8"]) == ("127.0.0.1",)
        found = self.found("localhost", "192.168.1.9", "127.0.0.1", networks=["127.0.0.1/8", *self.NETWORKS])
        assert found == ("127.0.0.1",)

    def test_no_other_url_of_the_host_is_allowed(self) -> None:
        world = World()
        for url in ("http://agent.local:8000/", "https://192.168.1.9:8000/"):
            assert isinstance(world.requests.judge(url, announced=("192.168.1.9",)), Allowed)
            with pytest.raises(NotAllowed):
                world.get(url)
        assert world.fetches == []


SECRET = "hunter2"
NASTY = f"https://u:{SECRET}@agent.example/?key={SECRET}"


class TestSecrets:
    """In no message, no representation and no traceback of anything that's raised."""

    def check(self, error: BaseException) -> None:
        told = [str(error), repr(error), *traceback.format_exception(error)]
        # A traceback quotes lines of source, which here name the constant and never its value.
        assert not any(SECRET in text for text in told)

    @pytest.mark.parametrize(
        "reply",
        [
            *(Unanswered(stage, "it broke") for stage in Stage),
            *map(Expired, Stage),
            Barred("it's inside", Advice("allow it")),
            Answer(302, (("location", NASTY),)),
            Answer(200, (("content-encoding", SECRET),), b"x"),
            Answer(200, (("content-encoding", "gzip"),), SECRET.encode()),
            Answer(200, (), SECRET.encode() * 200),
            Answer(200, (("x", SECRET),) * 101),
        ],
        ids=str,
    )  # fmt: skip
    def test_errors_of_a_response_show_no_secret(self, reply) -> None:
        url = f"https://agent.example/x?key={SECRET}#{SECRET}"
        world = World(reply, token=SECRET)
        world.requests.name_origin(url)
        programs: list[Program[HttpAnswer]] = [
            world.requests.get(world.requests.judge(url), [("x-key", SECRET)], 10),
            world.requests.post(world.requests.judge(url), {}, {"x-key": SECRET}),
        ]
        raised = 0
        for program in programs:
            try:
                world.run(program)
            except (Unreachable, NotAllowed, BadReply) as error:
                raised += 1
                self.check(error)
        # A reply of 1,400 bytes is too long for the document only.
        assert raised == 2 or (isinstance(reply, Answer) and len(reply.body) == 200 * len(SECRET))

    @pytest.mark.parametrize(
        "url", [NASTY, f"http://a.example/?{SECRET}", f"ftp://{SECRET}@a.example", f"https://{SECRET}@[::1"]
    )
    def test_errors_of_a_url_show_no_secret(self, url) -> None:
        with pytest.raises(NotAllowed) as caught:
            World().get(url)
        self.check(caught.value)

    def test_no_repr_shows_a_secret_of_the_caller(self) -> None:
        world = World(token=SECRET, auth={"https://a.example": SECRET})
        world.requests.name_origin(URL)
        world.post(document={"a": SECRET})
        assert SECRET not in repr(world.requests)
        assert SECRET not in repr(world.last)
