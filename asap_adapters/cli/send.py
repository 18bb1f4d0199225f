"""`asap send`: one task request, and the reply."""

import argparse
from typing import Any

from asap_adapters.cli.oauth_client import add_credential_options, credentials_of
from asap_adapters.cli.options import CLI_SENDER, add_client_options, origin, reach, token, urn
from asap_adapters.cli.output import UserError, json_text, print_json, say
from asap_adapters.client.agent_client import AgentClient
from asap_core.client.delivery import RetryPolicy
from asap_core.client.messages import checked_key
from asap_core.net.urls import origin_of
from asap_core.wire.codec import encode_envelope
from asap_core.wire.json import NotJson, read_json


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    send = commands.add_parser("send", help="send a task request and print the reply (exit 1 if it failed)")
    send.add_argument("url", metavar="URL", help="base URL of the agent")
    send.add_argument("--skill", metavar="SKILL", type=_text, required=True, help="the skill to call")
    send.add_argument("--input", metavar="JSON", type=_json_object, default={}, help="a JSON object (default: {})")
    send.add_argument("--token", metavar="TOKEN", type=token, help="bearer token")
    send.add_argument("--nonce", metavar="NONCE", type=_text, help="use this nonce instead of a random one")
    send.add_argument(
        "--idempotency-key",
        metavar="KEY",
        type=_key,
        help="have the work done once: the same command with the same key gets the same answer",
    )
    send.add_argument("--sender", metavar="URN", type=urn, default=CLI_SENDER, help=f"default: {CLI_SENDER}")
    send.add_argument("--expect", metavar="URN", type=urn, help="fail unless the agent has this id")
    send.add_argument(
        "--allow-endpoint",
        metavar="ORIGIN",
        type=origin,
        action="append",
        default=[],
        help="send there if the manifest says so, though it came from elsewhere (repeatable)",
    )
    add_credential_options(send)
    add_client_options(send)
    send.set_defaults(run=_send)


async def _send(arguments: argparse.Namespace) -> int:
    credentials = credentials_of(arguments)
    if credentials is not None and arguments.token is not None:
        raise UserError("expected --token or --client-id, not both", usage=True)
    client = AgentClient(
        sender=arguments.sender,
        token=arguments.token,
        auth={} if credentials is None else dict.fromkeys(_shown_to(arguments), credentials),
        allow_endpoints=arguments.allow_endpoint,
        **reach(arguments),
        # Whoever waits at a terminal decides by themselves whether to ask again.
        retry=RetryPolicy(retries=0),
    )
    async with client:
        manifest = await client.discover(arguments.url, expect=arguments.expect)
        payload = {"skill_id": arguments.skill, "input": arguments.input}
        reply = await client.send(
            manifest, "task.request", payload, nonce=arguments.nonce, idempotency_key=arguments.idempotency_key
        )
    if arguments.json:
        print_json(encode_envelope(reply))
    else:
        say(f"{reply.payload.get('status', reply.payload_type)}: {json_text(reply.payload.get('result'))}")
    return 0 if reply.payload.get("status") != "failed" else 1


def _shown_to(arguments: argparse.Namespace) -> list[str]:
    """The origins that tokens are for: those that whoever calls has named. What isn't a URL is told about later."""
    named = origin_of(arguments.url)
    return [*arguments.allow_endpoint, *([] if named is None else [named])]


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError("expected some text")
    return text


def _key(text: str) -> str:
    try:
        return checked_key(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = read_json(text.encode("utf-8", "surrogateescape"))
    except NotJson as error:
        raise argparse.ArgumentTypeError(f"expected {error.expected}") from None
    if type(value) is not dict:
        raise argparse.ArgumentTypeError('expected a JSON object, such as \'{"text": "hi"}\'')
    return value
