"""URLs that an agent publishes of itself: absolute if they're written here, read as they come from peers."""

import json

import pytest
from attrs import evolve

from asap_core import Agent, Endpoints, read_manifest
from asap_core.server.wellknown import publish
from asap_core.wire.codec import to_json
from asap_core.wire.registry import make_entry
from tests import builders


def manifest(endpoints):
    return builders.manifest(endpoints=endpoints)


WRONG = [
    "/asap",
    "asap",
    "",
    "//a.example/asap",
    "a.example/asap",
    "localhost:8000/asap",
    "http:///asap",
    "http:/asap",
    "http://a.example:x/asap",
    "http://a.example:99999/asap",
    "http://[::1/asap",
    "ftp://a.example/asap",
]


class TestWritten:
    @pytest.mark.parametrize("url", WRONG)
    def test_a_url_that_no_peer_can_call_is_refused(self, url) -> None:
        with pytest.raises(
            ValueError, match=r"endpoints\.asap: expected an absolute URL such as https://agent\.example/asap"
        ):
            Endpoints(asap=url)
        with pytest.raises(ValueError, match=r"endpoints\.events: expected an absolute URL such as wss://"):
            Endpoints(asap="https://a.example/asap", events=url)
        with pytest.raises(ValueError, match="expected absolute URLs"):
            make_entry(manifest(Endpoints(asap="https://a.example/asap")), {"http": url})
        with pytest.raises(ValueError, match="expected absolute URLs"):
            make_entry(manifest(Endpoints(asap="https://a.example/asap")), {"manifest": url})

    @pytest.mark.parametrize("url", ["http://a", "HTTPS://A.example:8443/x/asap", "http://[fe80::1%25eth0]:8000/asap"])
    def test_a_url_that_peers_can_call_is_accepted(self, url) -> None:
        assert Endpoints(asap=url, events="wss://a.example/events").asap == url
        assert make_entry(manifest(Endpoints(asap=url)), {"http": url, "other": "/x"}).endpoints["http"] == url


class TestReceived:
    @pytest.mark.parametrize("url", WRONG)
    def test_any_endpoint_in_a_peers_manifest_is_read(self, url) -> None:
        document = to_json(manifest(Endpoints(asap="https://a.example/asap")))
        document["endpoints"] |= {"asap": url, "events": url, "later": 1}
        found = read_manifest(json.dumps(document).encode())
        assert (found.endpoints.asap, found.endpoints.events, found.endpoints.extra) == (url, url, {"later": 1})
        assert json.loads(publish(found))["endpoints"] == document["endpoints"]
        with pytest.raises(ValueError, match=r"endpoints\.asap"):
            Agent(found)  # an agent that nobody can call

    def test_a_received_url_equals_the_same_url_written_in_python(self) -> None:
        own = manifest(Endpoints(asap="https://a.example/asap", events="wss://a.example/e"))
        found = read_manifest(json.dumps(to_json(own)).encode())
        assert found == own
        assert hash(found.endpoints.asap) == hash(own.endpoints.asap)
        assert evolve(found.endpoints, events=None) == evolve(own.endpoints, events=None)

    @pytest.mark.parametrize("endpoints", [{}, {"asap": 5}, {"asap": None}, [], None])
    def test_a_received_endpoint_must_be_present_and_text(self, endpoints) -> None:
        document = to_json(manifest(Endpoints(asap="https://a.example/asap"))) | {"endpoints": endpoints}
        with pytest.raises(ValueError, match=r"\$\.endpoints(\.asap)?: expected"):
            read_manifest(json.dumps(document).encode())
