"""mDNS with the reference implementation, each on a host of its own: each sees what the other announces."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.hosts import Hosts, need_hosts, two_hosts

pytestmark = [pytest.mark.interop, pytest.mark.parametrize("backend", ["trio", "asyncio"])]

SCRIPT = Path(__file__).parent / "reference_mdns.py"
OURS = Path(__file__).parent.parent / "live" / "mdns_host.py"
PORT = 8000
PATH = "/.well-known/asap/manifest.json"


@pytest.fixture(scope="session")
def reference_mdns(reference_python):
    """The interpreter that has the reference implementation and what it needs for mDNS, an extra of it."""
    if subprocess.run([reference_python, "-c", "import zeroconf"], capture_output=True, check=False).returncode != 0:
        subprocess.run([reference_python, "-m", "pip", "install", "-q", "zeroconf"], check=True, timeout=300)
    return reference_python


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    need_hosts()
    with two_hosts() as made:
        made.cable()
        yield made


def test_an_announcement_of_the_reference_is_seen_by_our_browser(hosts, reference_mdns, backend) -> None:
    watching = hosts.other.asap("browse", "--watch", "--json", "--backend", backend)
    watching.line(lambda line: "listening on" in line)
    announcing = hosts.one.start(reference_mdns, "-W", "ignore", SCRIPT, "advertise", "10.77.0.1", PORT)
    found = watching.document(event="added")
    assert (found["instance"], found["version"], found["skills"]) == ("Reference-Agent", "1.0.0", ["echo"])
    assert found["manifest_url"] == f"http://10.77.0.1:{PORT}{PATH}"
    # It doesn't say who it is.
    assert found["agent_id"] is None
    announcing.popen.stdin.close()
    assert watching.document(event="removed")["instance"] == "Reference-Agent"


def test_our_announcement_is_seen_by_the_reference(hosts, reference_mdns, backend) -> None:
    ours = hosts.one.start(sys.executable, "-u", OURS, backend, "*", f"http://*:{PORT}{PATH}", PORT)
    ours.document()
    found = hosts.other.start(reference_mdns, "-W", "ignore", SCRIPT, "browse", "3").document()
    assert found == {
        "name": "Far-Agent",
        "version": "1",
        "capabilities": "echo",
        "manifest_url": f"http://10.77.0.1:{PORT}{PATH}",
        "host": "10.77.0.1",
        "port": PORT,
    }
