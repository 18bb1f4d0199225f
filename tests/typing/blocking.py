"""What users write who call agents without await, for the type checker alone: it isn't run."""

from collections.abc import Sequence
from typing import assert_type

from asap_adapters import (
    BlockingClient,
    BlockingHttpOptions,
    DiscoveredAgent,
    DiscoveryOptions,
    OutboundPolicy,
    RemoteError,
    RetryPolicy,
    TrustPolicy,
)
from asap_core import Envelope, Health, Manifest, RegistryEntry, TaskRequest


class Hosts:
    def resolve(self, host: str, port: int) -> Sequence[str]:
        return ["192.0.2.7"] if port else [host]


def call() -> None:
    with BlockingClient(
        "urn:asap:agent:me",
        outbound=OutboundPolicy(allow_networks=["192.0.2.0/24"]),
        trust=TrustPolicy(require_signed=True),
        discovery=DiscoveryOptions(registries=["registry.json"]),
        http=BlockingHttpOptions(timeout=5.0, resolver=Hosts()),
        retry=RetryPolicy(),
    ) as client:
        manifest = client.discover("https://agent.example", expect="urn:asap:agent:you")
        assert_type(manifest, Manifest)
        assert_type(client.look_up("https://agent.example"), DiscoveredAgent)
        assert_type(client.get_manifest("https://agent.example/m.json"), Manifest)
        assert_type(client.get_document("https://agent.example/d"), bytes)
        assert_type(client.health_check("https://agent.example"), Health)
        assert_type(client.find("registry.json", skill="echo"), tuple[RegistryEntry, ...])
        assert_type(client.resolve("urn:asap:agent:you", wait=1.0), Manifest)
        assert_type(client.cached("https://agent.example"), Manifest | None)
        assert_type(client.stands_in("registry.json"), float | None)
        reply = client.send(
            manifest, "task.request", TaskRequest(conversation_id="c", skill_id="echo", input={}), idempotency_key="1"
        )
        assert_type(reply, Envelope)
        assert_type(client.send_batch(manifest, [("task.request", {})]), list[Envelope | RemoteError])
        client.send(manifest)  # type: ignore[call-arg]
        client.discover("https://agent.example", "urn:asap:agent:you")  # type: ignore[call-arg]
        client.discover(url="https://agent.example")  # type: ignore[call-arg]
        client.forget("https://agent.example")
        client.reset()
        client.keep_fresh("https://agent.example")
        with client.browse() as events:
            for event in events:
                print(event)
