"""`asap send`: one task request, and the reply."""

import argparse
import json
from typing import Any

from asap_adapters.cli.find import CLI_SENDER
from asap_adapters.cli.output import UserError, add_client_options, print_json
from asap_adapters.client import AgentClient
from asap_core.codec import encode_envelope
from asap_core.jsontext import NotJson, read_json
from asap_core.model.rules import URN

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    send = commands.add_parser("send", help="send a task request and print the reply", allow_abbrev=False)
    send.add_argument("url", metavar="URL", help="base URL of the agent")
    send.add_argument("--skill", metavar="SKILL", required=True, help="the skill to call")
    send.add_argument("--input", metavar="JSON", default="{}", help="a JSON object (default: {})")
    send.add_argument("--token", metavar="TOKEN", help="bearer token")
    send.add_argument("--nonce", metavar="NONCE", help="use this nonce instead of a random one")
    send.add_argument("--sender", metavar="URN", default=CLI_SENDER, help=f"who sends (default: {CLI_SENDER})")
    send.add_argument("--expect", metavar="URN", help="fail unless the agent has this id")
    add_client_options(send)
    send.set_defaults(run=_send)


async def _send(arguments: argparse.Namespace) -> int:
    if not URN.fits(arguments.sender):
        raise UserError(f"--sender: expected {URN.expected}", usage=True)
    task_input = _json_object(arguments.input)
    async with AgentClient(sender=arguments.sender, token=arguments.token, allow_http=arguments.allow_http) as client:
        manifest = await client.discover(arguments.url, expect=arguments.expect)
        payload = {"skill_id": arguments.skill, "input": task_input}
        reply = await client.send(manifest, "task.request", payload, nonce=arguments.nonce)
    if arguments.json:
        print_json(encode_envelope(reply))
    else:
        result = reply.payload.get("result")
        print(f"{reply.payload.get('status', reply.payload_type)}: {json.dumps(result, ensure_ascii=False)}")
    return 0 if reply.payload.get("status") != "failed" else 1


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = read_json(text.encode("utf-8", "surrogatepass"))
    except NotJson as error:
        raise UserError(f"--input: expected {error.expected}", usage=True) from None
    if type(value) is not dict:
        raise UserError('--input: expected a JSON object, such as \'{"text": "hi"}\'', usage=True)
    return value
