"""`asap send`: sends one task request and prints the reply."""

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from asap_adapters.cli.command import Excludes, command, in_event_loop, nested, option, repeated, required
from asap_adapters.cli.oauth_credentials import CREDENTIAL_RULES, CredentialOptions, credentials_of
from asap_adapters.cli.options import CLI_SENDER, OutboundOptions, backend_option, json_option, origin, urn
from asap_adapters.cli.output import json_text, print_json, say
from asap_adapters.client.agent_client import AgentClient
from asap_core.auth.bearer import is_token
from asap_core.client.delivery import RetryPolicy
from asap_core.client.messages import read_key
from asap_core.net.urls import origin_of
from asap_core.wire.codec import encode_envelope
from asap_core.wire.json import NotJson, read_json


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("expected printable text, at least one character")
    return text


def _json_object(text: str) -> dict[str, object]:
    try:
        value: object = read_json(text.encode("utf-8", "surrogateescape"))
    except NotJson as error:
        raise ValueError(f"expected {error.expected}") from None
    if type(value) is not dict:
        raise ValueError('expected a JSON object, such as \'{"text": "hi"}\'')
    return value


def _token(text: str) -> str:
    # The error doesn't repeat the token.
    if not is_token(text):
        raise ValueError("expected visible ASCII characters")
    return text


@frozen(kw_only=True)
class SendOptions:
    """The options of `asap send`."""

    url: str = required("URL", str, "base URL of the agent")
    skill: str = required("--skill SKILL", _text, "call this skill")
    input: dict[str, object] | None = option(
        "--input JSON", _json_object, "pass this JSON object to the skill", shown_default="{}"
    )
    sender: str = option("--sender URN", urn, "send as this agent", default=CLI_SENDER)
    expect: str | None = option("--expect URN", urn, "fail if the agent at URL has another id")
    nonce: str | None = option("--nonce NONCE", _text, "send this nonce instead of a random one")
    idempotency_key: str | None = option(
        "--idempotency-key KEY",
        read_key,
        "have the work done once: the same command with the same key gets the same answer",
    )
    allow_endpoint: Sequence[str] = repeated(
        "--allow-endpoint ORIGIN",
        origin,
        "send to this origin if the manifest, which comes from another, names it as its endpoint",
    )
    token: str | None = option("--token TOKEN", _token, "authenticate with this bearer token")
    credentials: CredentialOptions = nested(CredentialOptions, "access tokens")
    json: bool = json_option()
    outbound: OutboundOptions = nested(OutboundOptions, "connections")
    backend: str = backend_option()


async def _send(options: SendOptions) -> int:
    credentials = credentials_of(options.credentials)
    client = AgentClient(
        sender=options.sender,
        token=options.token,
        auth={} if credentials is None else dict.fromkeys(_token_origins(options), credentials),
        **options.outbound.client_arguments(allow_endpoints=options.allow_endpoint),
        # The user at the terminal decides whether to send again.
        retry=RetryPolicy(retries=0),
    )
    async with client:
        manifest = await client.discover(options.url, expect=options.expect)
        payload = {"skill_id": options.skill, "input": options.input or {}}
        reply = await client.send(
            manifest, "task.request", payload, nonce=options.nonce, idempotency_key=options.idempotency_key
        )
    if options.json:
        print_json(encode_envelope(reply))
    else:
        say(f"{reply.payload.get('status', reply.payload_type)}: {json_text(reply.payload.get('result'))}")
    return 0 if reply.payload.get("status") != "failed" else 1


def _token_origins(options: SendOptions) -> list[str]:
    """Return the origins that the token may be sent to: those that the user named."""
    named = origin_of(options.url)  # None if it isn't a URL, which `discover` reports
    return [*options.allow_endpoint, *([] if named is None else [named])]


COMMANDS: Final = (
    command(
        "send",
        SendOptions,
        in_event_loop(_send),
        "send a task request and print the reply (exit code 1 if the task failed)",
        rules=(Excludes("--token", ["--client-id"]), *CREDENTIAL_RULES),
    ),
)
