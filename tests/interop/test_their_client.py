"""The reference's client against our server: everything it can do works, everything that must be refused is."""

import threading

import anyio
import pytest

from asap_adapters.cli.echo_agent import echo, echo_manifest
from asap_adapters.server.listener import listen, serve
from asap_core import Agent, Policy, TokenTable

pytestmark = pytest.mark.interop

AGENT = "urn:asap:agent:echo-agent"
SENDER = "urn:asap:agent:reference-client"


@pytest.fixture(params=["trio", "asyncio"], scope="module")
def our_server(request):
    """Serve our echo agent in a thread; returns its base URL."""
    threads = []

    def start(*, tokens=None, policy=None):
        urls, stops = [], []  # type: ignore[var-annotated]
        ready = threading.Event()

        async def main() -> None:
            bound = await listen("127.0.0.1", 0)
            agent = Agent(
                echo_manifest(AGENT, bound.url, auth=tokens is not None), policy=policy or Policy(peer_limits=())
            )
            stop = anyio.Event()
            stops.append(lambda: anyio.from_thread.run_sync(stop.set, token=token))  # type: ignore[has-type]
            token = anyio.lowlevel.current_token()
            async with anyio.create_task_group() as group:

                async def serving(*, task_status) -> None:
                    verify = None if tokens is None else TokenTable(tokens).verify
                    await serve(
                        agent, {"echo": echo}, authenticate=verify, at=bound, stop=stop, task_status=task_status
                    )

                urls.append(await group.start(serving))
                ready.set()

        thread = threading.Thread(target=lambda: anyio.run(main, backend=request.param))
        thread.start()
        threads.append((thread, stops))
        assert ready.wait(30)
        return urls[0]

    yield start
    for thread, stops in threads:
        stops[0]()
        thread.join(30)


@pytest.fixture(scope="module")
def said(our_server, reference_client):
    """What each step of the script brought at our server without tokens."""
    return reference_client(our_server(), AGENT)


def test_the_client_of_the_reference_completes_the_whole_script(said) -> None:
    assert said["manifest"]["ok"]["id"] == AGENT
    assert said["discover"]["ok"] == said["manifest"]["ok"]
    assert said["health"]["ok"]["status"] == "healthy"
    assert said["send"]["ok"]["payload"]["result"] == {"echoed": {"text": "hi"}}
    assert said["send"]["ok"]["recipient"] == SENDER
    assert len(said["send_50k"]["ok"]["payload"]["result"]["echoed"]["text"]) == 50_000
    assert "ok" in said["nonce_first"]
    assert len({reply["correlation_id"] for reply in said["twenty"]["ok"]}) == 20
    assert len({reply["correlation_id"] for reply in said["batch"]["ok"]}) == 5


def test_refusals_have_the_codes_of_the_reference(said) -> None:
    refused = {step: (said[step]["code"], said[step]["taxonomy"]) for step in ("nonce_again", "stale", "unknown_type")}
    assert refused == {
        "nonce_again": (-32003, "asap:protocol/invalid_nonce"),
        "stale": (-32002, "asap:protocol/invalid_timestamp"),
        "unknown_type": (-32012, "asap:transport/handler_not_found"),
    }


def test_a_token_authenticates_only_its_own_agent(our_server, reference_client) -> None:
    base = our_server(tokens={"t": SENDER})
    said = reference_client(base, AGENT, "t")
    assert said["send"]["ok"]["payload"]["status"] == "completed"
    assert "403" in said["other_sender"]["text"] or said["other_sender"]["code"] == -32602
    assert "ok" not in reference_client(base, AGENT)["send"]


def test_the_profile_reference_accepts_envelopes_of_old_peers(our_server, reference_client) -> None:
    from attrs import evolve

    base = our_server(policy=evolve(Policy.reference(), peer_limits=()))
    said = reference_client(base, "urn:asap:agent:any-other")
    assert said["send"]["ok"]["payload"]["status"] == "completed"
