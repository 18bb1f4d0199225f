"""A world of agents for the programs that find them: documents at URLs, files, announcements, all from a script."""

import json
from collections.abc import Collection
from typing import Any

from asap_core.client.discovery import Discovery
from asap_core.client.programs import Fetch, Heard, Next, ReadFile, Unavailable
from asap_core.client.requests import Requests
from asap_core.mdns.dnssd import Added, Announcement, Event
from asap_core.net.outbound import OutboundPolicy
from tests.core.client.scripted import HELD, After, Answer, Driver, Reply
from tests.core.client.signatures import verify

URN = "urn:asap:agent:echo-agent"
OTHER = "urn:asap:agent:other"
NO_FILE = Unavailable("No such file or directory", 2)


def manifest(urn: str = URN, **changes: Any) -> dict[str, Any]:
    plain = {
        "id": urn, "name": "Echo", "version": "1.0.0", "description": "Echoes.",
        "capabilities": {"asap_version": "0.1", "skills": [{"id": "echo", "description": "Echoes."}]},
        "endpoints": {"asap": "https://a.example/asap"},
    }  # fmt: skip
    return {**plain, **changes}


def registry(*urls: str, urn: str = URN, **extra: Any) -> dict[str, Any]:
    entry = {"id": urn, "name": "E", "description": "", "asap_version": "0.1", "skills": ["echo"], **extra}
    agents = [{**entry, "endpoints": {"manifest": url}} for url in urls]
    return {"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": agents}


def revocations(*urns: str) -> dict[str, Any]:
    return {"version": "1.0", "revoked": [{"urn": urn, "reason": "key stolen"} for urn in urns]}


def announcement(urn: str | None, url: str, *addresses: str) -> Announcement:
    return Announcement(
        instance=url,
        agent_id=urn,
        version="",
        skills=None,
        manifest_url=url,
        host="a.localhost",
        port=443,
        addresses=addresses or ("127.0.0.1",),
        link="eth0",
    )


class Outside(Driver):
    """Documents at URLs, files, and announcements.

    pages: by URL, a document, a status, a reply, or a function that returns one. Any other URL answers 404.
    files: by path, a document, bytes, or an outcome. Any other file doesn't exist.
    coming: what happens on the local network, a second apart.
    asked: the URLs of all requests.
    """

    def __init__(self) -> None:
        super().__init__(self._reply)
        self.pages: dict[str, Any] = {}
        self.files: dict[str, Any] = {}
        self.coming: list[Event | Unavailable] = []
        self.asked: list[str] = []
        self.networks: Collection[str] = ("127.0.0.1/8",)
        self.links_asked: list[str] = []

    def announce(self, *announcements: Announcement) -> None:
        self.coming += map(Added, announcements)

    def warnings(self) -> list[str]:
        remarks = self.runtime.take_remarks()
        assert {(remark.logger, remark.level) for remark in remarks} <= {("asap.discovery", "warning")}
        return [remark.text for remark in remarks]

    def links(self, link: str) -> tuple[Collection[str], Collection[str]]:
        self.links_asked.append(link)
        return self.networks, {"eth0"}

    def _reply(self, effect: Fetch | Next | ReadFile) -> Reply | After:
        match effect:
            case Fetch():
                self.asked.append(effect.url)
                found = self.pages.get(effect.url, 404)
                return _reply(found(effect) if callable(found) else found)
            case ReadFile():
                return _reply(self.files.get(effect.path, NO_FILE))
            case Next():
                if not self.coming:
                    return HELD
                event = self.coming.pop(0)
                return event if isinstance(event, Unavailable) else After(1.0, Heard(event))


class World(Outside):
    """A client's `discovery`, and the world that it asks."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.requests = Requests(self.runtime, policy=OutboundPolicy())
        settings: dict[str, Any] = {"links": self.links, "verify": verify, **options}
        self.discovery = Discovery(self.runtime, self.requests, **settings)


def _reply(found: Any) -> Reply | After:
    match found:
        case int():
            return Answer(found)
        case dict() | list():
            return Answer(body=json.dumps(found).encode())
        case bytes():
            return Answer(body=found)
        case _:
            reply: Reply | After = found
            return reply
