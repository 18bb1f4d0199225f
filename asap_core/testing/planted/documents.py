"""The documents that the agent publishes: its manifest, with a validator for caches, and its health."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

from asap_core.testing.planted.messages import JSON, Fields, PlantedOptions, PlantedRequest, PlantedResponse
from asap_core.testing.planted.switches import Breaks
from asap_core.testing.planted.texts import write_text

MANIFEST: Final = "/.well-known/asap/manifest.json"
HEALTH: Final = "/.well-known/asap/health"


@dataclass
class PlantedDocuments:
    """Answers GET for the documents. `started`: when the agent was started, by its monotonic clock."""

    options: PlantedOptions
    broken: Breaks
    monotonic: Callable[[], float]
    started: float

    def manifest(self, request: PlantedRequest) -> PlantedResponse:
        """The manifest, or 304 if the caller has it."""
        body = self._manifest_text()
        tag = f'"{sha256(body).hexdigest()}"'
        fields: Fields = (("etag", tag), ("cache-control", "public, max-age=300"))
        if self.broken("discovery.etag_missing"):
            fields = fields[1:]
        if self.broken("discovery.etag_changes"):
            fields = (("etag", f'"{uuid4().hex}"'), *fields[1:])
        if self.broken("discovery.etag_unquoted"):
            fields = (("etag", tag.strip('"')), *fields[1:])
        if self.broken("discovery.etag_weak"):
            fields = (("etag", "W/" + tag), *fields[1:])
        if self.broken("discovery.cache_control"):
            fields = fields[:1]
        if self._is_known(request, tag):
            sent = body if self.broken("discovery.body_of_304") else b""
            fields = fields[:0] if self.broken("discovery.fields_of_304") else fields
            return PlantedResponse(status=304, fields=fields, body=sent)
        if "gzip" in (request.value("accept-encoding") or ""):
            body, fields = self._coded(body, fields)
        kind = ("content-type", "text/plain") if self.broken("discovery.content_type") else JSON
        return PlantedResponse(status=200, fields=(kind, *fields), body=body)

    def _coded(self, body: bytes, fields: Fields) -> tuple[bytes, Fields]:
        """Compress the manifest, wrongly for caches. Only a broken agent does."""
        if self.broken("discovery.coded_etag"):
            return gzip.compress(body), (*fields, ("content-encoding", "gzip"), ("vary", "accept-encoding"))
        if self.broken("discovery.coded_without_vary"):
            return gzip.compress(body), (("etag", '"coded"'), *fields[1:], ("content-encoding", "gzip"))
        return body, fields

    def _manifest_text(self) -> bytes:
        options = self.options
        manifest: dict[str, Any] = {
            "id": options.urn,
            "name": options.name,
            "version": "1.0.0",
            "description": "An agent to test the tests with",
            "capabilities": {
                "asap_version": "0.1",
                "skills": [
                    {"id": skill, "description": skill, "input_schema": None, "output_schema": None}
                    for skill in options.skills
                ],
                "state_persistence": False,
                "streaming": False,
                "mcp_tools": [],
            },
            "endpoints": {"asap": f"{options.url}/asap", "events": None},
            "auth": {"schemes": ["bearer"], "oauth2": None} if options.tokens else None,
            "signature": None,
            "ttl_seconds": 300,
        }
        for key in ("id", "name", "version", "capabilities", "endpoints"):
            if self.broken(f"discovery.manifest_without_{key}"):
                del manifest[key]
        if self.broken("discovery.manifest_auth"):
            manifest["auth"] = None
        if self.broken("discovery.manifest_id"):
            manifest["id"] = "Planted"
        if self.broken("discovery.manifest_endpoint"):
            manifest["endpoints"]["asap"] = "/asap"
        if self.broken("discovery.manifest_types"):
            manifest["ttl_seconds"] = "5 minutes"
        if self.broken("discovery.manifest_skills"):
            manifest["capabilities"]["skills"] = []
        if self.broken("discovery.manifest_json"):
            return json.dumps(manifest).encode() + b","
        if self.broken("discovery.manifest_changes"):
            manifest["description"] = uuid4().hex
        return write_text(manifest)

    def _is_known(self, request: PlantedRequest, tag: str) -> bool:
        """Whether If-None-Match names the manifest: any member of the list, compared weakly (RFC 9110 §13.1.2)."""
        asked = request.value("if-none-match")
        if self.broken("discovery.if_none_match_first_line"):
            asked = next(iter(request.values("if-none-match")), None)
        if asked is None:
            return bool(request.values("if-modified-since")) and self.broken("discovery.if_modified_since")
        if self.broken("discovery.if_none_match"):
            return False
        if request.values("if-modified-since") and self.broken("discovery.if_modified_since"):
            return True
        if request.method == "HEAD" and self.broken("discovery.if_none_match_head"):
            return False
        if self.broken("discovery.if_none_match_any"):
            return True
        if asked.strip() == "*":
            return not self.broken("discovery.if_none_match_star")
        if self.broken("discovery.if_none_match_list"):
            return asked.strip() == tag
        members = [member.strip() for member in asked.split(",")]
        if not self.broken("discovery.if_none_match_weak"):
            members = [member.removeprefix("W/") for member in members]
        if self.broken("discovery.if_none_match_contained") and any(tag.strip('"') in member for member in members):
            return True
        if self.broken("discovery.if_none_match_part") and any(member.strip('"') in tag for member in members):
            return True
        return tag in members

    def health(self, _request: PlantedRequest) -> PlantedResponse:
        """The health report, which is never cached."""
        uptime = max(0.0, round(self.monotonic() - self.started, 2))
        if self.broken("discovery.health_uptime_constant"):
            uptime = 0.0
        if self.broken("discovery.health_uptime_milliseconds"):
            uptime *= 1_000
        report: dict[str, Any] = {
            "status": "ok" if self.broken("discovery.health_status") else "healthy",
            "agent_id": "urn:asap:agent:other" if self.broken("discovery.health_agent_id") else self.options.urn,
            "version": "1.0.0",
            "asap_version": "0.1",
            "uptime_seconds": -1.0 if self.broken("discovery.health_uptime") else uptime,
            "load": None,
        }
        if self.broken("discovery.health_fields"):
            del report["agent_id"], report["uptime_seconds"]
        status = 204 if self.broken("discovery.health_http_status") else 200
        fields: Fields = (JSON,) if self.broken("discovery.health_cached") else (JSON, ("cache-control", "no-store"))
        return PlantedResponse(status=status, fields=fields, body=b"" if status == 204 else write_text(report))

    def ready(self, _request: PlantedRequest) -> PlantedResponse:
        """What probes ask for."""
        return PlantedResponse(status=200, fields=(JSON, ("cache-control", "no-store")), body=b'{"status":"ok"}')
