"""Decisions as log lines and as counters, on the server, under ASGI, and for Prometheus's own reader."""

import logging

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from asap_adapters import AgentClient, AsgiApp, HttpOptions, RemoteError, bind_agent
from asap_adapters.server.logs import log_decision
from asap_adapters.testing import in_process
from asap_core import parse_limits
from asap_core.client.delivery import RetryPolicy
from asap_core.refusals import TIMESTAMP
from asap_core.server.events import Decision, What
from asap_core.server.metrics import Counters

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
ASK = {"skill_id": "echo", "input": {}}


def read(body: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode("ascii"))
        for sample in family.samples
    }


async def test_a_refusal_is_logged_with_peer_and_reason(agent, echo_handlers, caplog) -> None:
    caplog.set_level(logging.DEBUG, "asap.admission")
    async with in_process(agent(), echo_handlers) as client:
        await client.send(BASE, "task.request", ASK, nonce="captured")
        with pytest.raises(RemoteError):
            await client.send(BASE, "task.request", ASK, nonce="captured")
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "asap.admission"]
    assert lines == [
        ("DEBUG", "accepted peer=127.0.0.1 type=taskrequest"),
        ("INFO", "replayed peer=127.0.0.1 type=taskrequest code=-32003"),
    ]


def test_a_log_line_has_the_age_of_a_refused_date(caplog) -> None:
    caplog.set_level(logging.INFO, "asap.admission")
    log_decision(Decision(what=What.FUTURE, peer="", principal="urn:asap:agent:a", kind=TIMESTAMP, age=-61.5))
    assert caplog.messages == ["future peer=unknown principal=urn:asap:agent:a code=-32002 age=-61.500"]
    log_decision(Decision(what=What.ACCEPTED, peer="x"))
    assert len(caplog.messages) == 1


async def test_decisions_under_asgi_are_counted_for_prometheus(agent, echo_handlers) -> None:
    told: list[Decision] = []
    app = AsgiApp(agent(peer_limits=parse_limits("2/minute")), echo_handlers, observe=told.append, metrics=True)
    once = RetryPolicy(retries=0)
    async with AgentClient(
        sender="urn:asap:agent:me", http=HttpOptions(transport=httpx.ASGITransport(app)), retry=once
    ) as client:
        for _ in range(2):
            await client.send(BASE, "task.request", ASK)
        with pytest.raises(RemoteError):
            await client.send(BASE, "task.request", ASK)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as plain:
        shown = read((await plain.get(f"{BASE}/asap/metrics")).content)
    assert shown["asap_decisions_total", "accepted"] == 2
    assert shown["asap_decisions_total", "limited"] == 1
    assert shown["asap_accepted_total", "taskrequest"] == 2
    assert shown["asap_handlers_active",] == 0
    assert [one.what for one in told] == [What.ACCEPTED, What.ACCEPTED, What.LIMITED]


def test_a_counter_at_zero_is_shown_too() -> None:
    assert read(Counters().text(active=0, uptime=0.0))["asap_decisions_total", "spoofed"] == 0


async def test_an_agent_that_is_bound_keeps_its_observer(agent) -> None:
    served = bind_agent(agent(), metrics=True)
    assert bind_agent(served).counters is served.counters
