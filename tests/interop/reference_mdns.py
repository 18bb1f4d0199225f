"""Run by the reference implementation's interpreter: its advertiser or its browser.

Usage: reference_mdns.py advertise HOST PORT (until its input ends), or reference_mdns.py browse SECONDS
"""

import asyncio
import json
import logging
import sys

logging.disable(logging.CRITICAL)

from asap.discovery.dnssd import DNSSDAdvertiser, DNSSDDiscovery  # noqa: E402
from asap.models.entities import Capability, Endpoint, Manifest, Skill  # noqa: E402


def advertise(host, port):
    base = f"http://{host}:{port}"
    manifest = Manifest(
        id="urn:asap:agent:reference",
        name="Reference Agent",
        version="1.0.0",
        description="The reference implementation's",
        capabilities=Capability(asap_version="0.1", skills=[Skill(id="echo", description="Echo")]),
        endpoints=Endpoint(asap=f"{base}/asap"),
    )
    advertiser = DNSSDAdvertiser(manifest, f"{base}/.well-known/asap/manifest.json", int(port), host=host)
    advertiser.start()
    print(json.dumps({"advertised": True}), flush=True)
    sys.stdin.read()
    advertiser.stop()


def browse(seconds):
    for agent in asyncio.run(DNSSDDiscovery().browse(float(seconds))):
        print(agent.model_dump_json(), flush=True)


if __name__ == "__main__":
    {"advertise": advertise, "browse": browse}[sys.argv[1]](*sys.argv[2:])
