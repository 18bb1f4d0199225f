"""An agent announced on a host of its own, for test_mdns_hosts.py: prints what it announces, does what it's told.

Usage: mdns_host.py BACKEND HOST MANIFEST_URL PORT [INTERFACE…]; each line in is the version and skills to change to.
"""

import json
import logging
import sys
from typing import Any

import anyio

from asap_adapters.mdns.local_network import Advertiser

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)


async def tell(advertiser) -> None:
    """Print what is announced, whenever it changes."""
    told: Any = None
    while True:
        now = [
            {"link": one.link, "instance": one.instance, "url": one.manifest_url, "addresses": one.addresses}
            for one in advertiser.announced
        ]
        if now != told:
            told = now
            print(json.dumps({"announced": now}), flush=True)
        await anyio.sleep(0.1)


async def main(host, url, port, interfaces) -> None:
    advertiser = Advertiser(
        agent_id="urn:asap:agent:far", name="Far Agent", version="1", skills=["echo"],
        manifest_url=url, host=host, port=port, interfaces=interfaces or None,
    )  # fmt: skip
    async with advertiser, anyio.create_task_group() as tasks:
        tasks.start_soon(tell, advertiser)
        async for line in anyio.wrap_file(sys.stdin):
            await advertiser.update(**json.loads(line))
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:], backend=sys.argv[1])
