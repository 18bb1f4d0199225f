"""The documents that an agent publishes: manifest, health, readiness."""

import json

import pytest

from asap_core import (
    Agent,
    ManualClock,
)
from tests.builders import manifest
from tests.core.server.exchanges import finish, head, serve


class TestDocuments:
    @pytest.mark.parametrize(
        "target",
        [
            "/health",
            "/ready",
            "/.well-known/asap/health",
            "/.well-known/asap/manifest.json",
            "/health?x",
            "http://host/health",
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_documents_are_answered_at_once(self, method, target) -> None:
        response = finish(serve().open(head(method, target)))
        assert response.status == 200
        assert dict(response.headers)[b"asap-version"] == b"2.2"
        assert (response.body == b"") is (method == "HEAD")
        assert int(dict(response.headers)[b"content-length"]) > 0

    def test_the_manifest_is_revalidated(self) -> None:
        agent = serve()
        first = finish(agent.open(head("GET", "/.well-known/asap/manifest.json")))
        tag = dict(first.headers)[b"etag"].decode()
        assert dict(first.headers)[b"cache-control"] == b"public, max-age=300"
        for wanted in (tag, f"W/{tag}", "*", f'"x", {tag}', f'"x, y",{tag}'):
            again = finish(agent.open(head("GET", "/.well-known/asap/manifest.json", if_none_match=wanted)))
            assert (again.status, again.body, b"content-length" in dict(again.headers)) == (304, b"", False)
        for other in ('"x"', "x", "", tag.strip('"'), f'"x,{tag}', '"x,*,y"'):
            assert finish(agent.open(head("GET", "/.well-known/asap/manifest.json", if_none_match=other))).status == 200

    def test_the_manifest_has_later_keys_only_if_they_have_a_value(self) -> None:
        body = json.loads(finish(serve().open(head("GET", "/.well-known/asap/manifest.json"))).body)
        assert not {"supported_versions", "sla", "verification"} & set(body)
        assert not {"hardware", "inference"} & set(body["capabilities"])
        agent = Agent(manifest(supported_versions=["2.2"]))
        assert json.loads(agent.document.body)["supported_versions"] == ["2.2"]

    def test_the_health_document_has_uptime_and_load(self) -> None:
        clock = ManualClock()
        agent = serve(clock=clock)
        clock.advance(2.5)
        clock.step_wall(-3600)
        agent.started("caller")
        report = json.loads(finish(agent.open(head("GET", "/.well-known/asap/health"))).body)
        assert (report["uptime_seconds"], report["load"], report["status"]) == (
            2.5, {"active_tasks": 1, "queue_depth": 0}, "healthy",
        )  # fmt: skip

    def test_health_probes_see_that_the_agent_drains(self) -> None:
        agent = serve()
        agent.drain()
        statuses = [
            finish(agent.open(head("GET", target))).status
            for target in ("/ready", "/.well-known/asap/health", "/health")
        ]
        assert statuses == [503, 503, 200]

    @pytest.mark.parametrize(
        ("method", "target", "status", "allow"),
        [
            ("GET", "/asap", 405, b"POST"),
            ("HEAD", "/asap", 405, b"POST"),
            ("PUT", "/asap/stream", 405, b"POST"),
            ("POST", "/health", 405, b"GET, HEAD"),
            ("get", "/health", 405, b"GET, HEAD"),
            ("GET", "/", 404, None),
            ("POST", "/asapx", 404, None),
            ("OPTIONS", "*", 404, None),
            ("CONNECT", "host:443", 404, None),
            ("GET", "http://host", 404, None),
        ],
    )
    def test_other_methods_and_paths_are_refused(self, method, target, status, allow) -> None:
        for headers, close in [
            ({}, False),
            ({"content_length": "00"}, False),
            ({"content_length": "10"}, True),
            ({"transfer_encoding": "chunked"}, True),
        ]:
            response = finish(serve().open(head(method, target, **headers)))
            assert (response.status, dict(response.headers).get(b"allow"), response.close) == (status, allow, close)
