"""The documents that an agent publishes: manifest (or 304 if the caller has it), health, readiness.

Plain functions from facts to a response. `exchange` routes requests to them.
"""

from typing import Final

from attrs import frozen

from asap_core.http.messages import Request, Response, header_values, json_response, matches_etag
from asap_core.wire.codec import etag, to_json
from asap_core.wire.json import write_json
from asap_core.wire.json_values import JsonObject
from asap_core.wire.manifest import Health, HealthStatus, Load, Manifest

METRICS_PATH: Final = "/asap/metrics"

# Readers of 1.1 refuse a manifest with unknown keys, so these are written only if they're set.
_LATER_KEYS: Final = ("supported_versions", "sla", "verification")
_LATER_CAPABILITIES: Final = ("hardware", "inference")


def publish(manifest: Manifest) -> bytes:
    """Write a manifest that readers of every version accept: the keys of 1.1 always, later ones if they're set."""
    document: JsonObject = to_json(manifest)
    _drop_nulls(document, _LATER_KEYS)
    _drop_nulls(document["capabilities"], _LATER_CAPABILITIES)
    return write_json(document)


def _drop_nulls(document: JsonObject, keys: tuple[str, ...]) -> None:
    for key in keys:
        if document[key] is None:
            del document[key]


@frozen
class ManifestDocument:
    """A manifest as it's served: its bytes, their entity tag, and for how many seconds it may be cached."""

    body: bytes
    tag: str
    max_age: int

    @classmethod
    def of(cls, manifest: Manifest) -> "ManifestDocument":
        """Write the manifest once, for every request."""
        body = publish(manifest)
        return cls(body, etag(body), manifest.ttl_seconds)

    def response(self, request: Request) -> Response:
        """Answer a request for it, with 304 if the caller has it already (RFC 9110 §15.4.5)."""
        headers = (
            (b"etag", self.tag.encode("ascii")),
            (b"cache-control", b"public, max-age=%d" % self.max_age),
        )
        if matches_etag(header_values(request.headers, b"if-none-match"), self.tag):
            return Response(status=304, headers=headers)
        return Response(status=200, headers=((b"content-type", b"application/json"), *headers), body=self.body)


def health_response(manifest: Manifest, *, uptime: float, active: int, healthy: bool) -> Response:
    """Return the health report: 200 if it's healthy, 503 with the same body if not. It's never cached."""
    status = HealthStatus.HEALTHY if healthy else HealthStatus.UNHEALTHY
    report = Health(
        status=status.value,
        agent_id=manifest.id,
        version=manifest.version,
        asap_version=manifest.capabilities.asap_version,
        uptime_seconds=round(uptime, 2),
        load=Load(active_tasks=active),
    )
    return json_response(200 if healthy else 503, to_json(report), ((b"cache-control", b"no-store"),))


def status_response(*, ok: bool) -> Response:
    """Answer /health and /ready as probes expect: 200 or 503."""
    return json_response(
        200 if ok else 503, {"status": "ok" if ok else "unavailable"}, ((b"cache-control", b"no-store"),)
    )
