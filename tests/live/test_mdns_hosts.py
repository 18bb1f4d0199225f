"""mDNS between two real hosts, on IPv4, IPv6 and both; with links that come and go; and avahi as a foreign peer."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.hosts import HERE, Hosts, need_hosts, two_hosts

pytestmark = pytest.mark.live
# The engine's thread is the same under both; what reaches users is seen under each.
on_both = pytest.mark.parametrize("backend", ["trio", "asyncio"])

PORT = 8000
PATH = "/.well-known/asap/manifest.json"


RESOLVE = """
import sys, anyio
from asap_adapters import AgentClient
async def main():
    async with AgentClient(sender="urn:asap:agent:me") as client:
        manifest = await client.resolve("urn:asap:agent:echo-agent", wait=60)
        reply = await client.send(manifest, "task.request", {"skill_id": "echo", "input": {}})
        print(reply.payload["status"])
anyio.run(main, backend=sys.argv[1])
"""


@pytest.fixture
def backend():
    return "trio"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    need_hosts()
    with two_hosts() as made:
        yield made


def announce(hosts, backend, host="*", url=None, *interfaces):
    """Announce an agent at a wildcard address on the one host, unless told otherwise."""
    url = f"http://*:{PORT}{PATH}" if url is None else url
    return hosts.one.start(sys.executable, "-u", HERE / "mdns_host.py", backend, host, url, PORT, *interfaces)


def browse(hosts, backend, *options):
    watching = hosts.other.asap("browse", "--watch", "--json", "--backend", backend, *options)
    watching.line(lambda line: "this reaches the local network only" in line)
    return watching


@on_both
@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
def test_an_agent_is_seen_from_another_host_when_added_updated_and_removed(hosts, family, backend) -> None:
    hosts.cable(family=family)
    watching, agent = browse(hosts, backend), announce(hosts, backend)
    found = watching.document(event="added", agent_id="urn:asap:agent:far")
    four, six = "10.77.0.1", "" if family == "ipv4" else f"{hosts.one.link_local('ours0')}%theirs0"
    assert set(found["addresses"]) == {"ipv4": {four}, "ipv6": {six}, "dual": {four, six}}[family]
    host = f"[{six}]" if family == "ipv6" else four
    assert (found["manifest_url"], found["link"]) == (f"http://{host}:{PORT}{PATH}", "theirs0")
    assert (found["instance"], found["version"], found["skills"]) == ("Far-Agent", "1", ["echo"])
    agent.tell({"version": "2", "skills": ["echo", "sum"]})
    assert watching.document(event="updated", version="2")["skills"] == ["echo", "sum"]
    agent.popen.stdin.close()
    assert watching.document(event="removed")["agent_id"] == "urn:asap:agent:far"
    assert agent.popen.wait(60) == 0


def test_each_link_gets_only_its_own_addresses(hosts, backend) -> None:
    hosts.cable(0)
    hosts.cable(1)
    watching, _ = browse(hosts, backend), announce(hosts, backend)
    seen: dict[str, Any] = {}
    while len(seen) < 2:
        found = watching.document(agent_id="urn:asap:agent:far")
        seen[found["link"]] = found
    for number in (0, 1):
        found = seen[f"theirs{number}"]
        assert set(found["addresses"]) == {
            f"10.77.{number}.1",
            f"{hosts.one.link_local(f'ours{number}')}%theirs{number}",
        }
        assert found["manifest_url"] == f"http://10.77.{number}.1:{PORT}{PATH}"
        # It isn't another agent of that name.
        assert found["instance"] == "Far-Agent"


def test_only_the_interfaces_that_were_named_are_used(hosts, backend) -> None:
    hosts.cable(0)
    hosts.cable(1)
    watching = browse(hosts, backend, "--interface", "theirs1", "--interface", "theirs0")
    agent = announce(hosts, backend, "*", None, "10.77.1.1")
    announced = agent.document()["announced"]
    assert [one["link"] for one in announced] == ["ours1"]
    assert watching.document(event="added")["link"] == "theirs1"


def test_a_url_at_one_address_is_announced_on_the_link_of_that_address(hosts, backend) -> None:
    hosts.cable(0)
    hosts.cable(1)
    agent = announce(hosts, backend, "0.0.0.0", f"http://10.77.1.1:{PORT}{PATH}")
    announced = agent.document()["announced"]
    assert [(one["link"], one["addresses"]) for one in announced] == [("ours1", ["10.77.1.1"])]


def test_two_agents_of_the_same_name_on_two_hosts_get_different_names(hosts, backend) -> None:
    hosts.cable()
    announce(hosts, backend).document()
    taken = hosts.other.start(sys.executable, "-u", HERE / "mdns_host.py", backend, "*", f"http://*:{PORT}{PATH}", PORT)
    assert taken.document()["announced"][0]["instance"] == "Far-Agent-2"


@on_both
def test_an_agent_is_found_and_called_at_its_link_local_address(hosts, backend) -> None:
    hosts.cable(family="ipv6")
    address = hosts.one.link_local("ours0")
    # Its own name for the link is of no use to others, and so it's in nothing that it says.
    serving = hosts.one.asap(
        "serve", "--host", f"{address}%ours0", "--public-url", f"http://[{address}]:{PORT}", "--mdns",
        "--port", PORT, "--backend", backend,
    )  # fmt: skip
    assert serving.line(lambda line: line if "mDNS" in line else None) == (
        f"asap: mDNS: announced as Echo-Agent on ours0 ({address}); this reaches the local network only\n"
    )
    watching = browse(hosts, backend)
    found = watching.document(event="added")
    assert found["manifest_url"] == f"http://[{address}%theirs0]:{PORT}{PATH}"
    for mark in ("%", "%25"):
        base = f"http://[{address}{mark}theirs0]:{PORT}"
        sent = hosts.other.run(
            sys.executable, "-m", "asap_adapters.cli", "send", base, "--skill", "echo", "--input", '{"text": "hi"}',
            "--allow-http", f"{address}%theirs0", "--allow-network", "fe80::/10", "--backend", backend, "--json",
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr
        assert json.loads(sent.stdout)["payload"]["result"] == {"echoed": {"text": "hi"}}
    # And by its name alone: what the link told is followed on that link.
    resolved = hosts.other.run(sys.executable, "-c", RESOLVE, backend)
    assert resolved.stdout == "completed\n", resolved.stderr
    # On SIGTERM it says goodbye first.
    serving.popen.terminate()
    watching.document(event="removed")
    assert serving.popen.wait(60) == 0


@on_both
def test_a_new_link_gets_announcements_and_a_lost_link_loses_its_agents(hosts, backend) -> None:
    hosts.cable(0)
    watching, agent = browse(hosts, backend), announce(hosts, backend)
    watching.document(event="added", link="theirs0")
    hosts.cable(1)
    assert watching.document(event="added", link="theirs1")["manifest_url"] == f"http://10.77.1.1:{PORT}{PATH}"
    hosts.one.ip("link", "delete", "ours0")
    assert watching.document(event="removed")["link"] == "theirs0"
    agent.line(
        lambda line: line.startswith("{") and [one["link"] for one in json.loads(line)["announced"]] == ["ours1"]
    )


def test_a_new_address_is_announced_under_the_same_name(hosts, backend) -> None:
    hosts.cable()
    watching, _ = browse(hosts, backend), announce(hosts, backend)
    before = watching.document(event="added")
    hosts.one.ip("address", "add", "10.77.0.9/24", "dev", "ours0")
    more = watching.document(event="updated")
    assert set(more["addresses"]) == {*before["addresses"], "10.77.0.9"}
    # The one it's announced at and sent from.
    hosts.one.ip("address", "flush", "dev", "ours0", "to", "10.77.0.0/24")
    hosts.one.ip("address", "add", "10.77.0.77/24", "dev", "ours0")
    after = watching.document(event="updated", manifest_url=f"http://10.77.0.77:{PORT}{PATH}")
    assert (after["instance"], "10.77.0.1" in after["addresses"]) == ("Far-Agent", False)
    assert not any('"removed"' in line for line in watching.said)


def test_a_flapping_link_gets_few_announcements(hosts, backend) -> None:
    hosts.cable()
    agent = announce(hosts, backend)
    agent.document()
    quiet = 0
    for _ in range(12):
        hosts.one.ip("link", "set", "ours0", "down")
        time.sleep(0.3)
        began = time.monotonic()
        hosts.one.ip("link", "set", "ours0", "up")
        time.sleep(0.3)
        quiet += time.monotonic() - began > 1  # a busy machine may leave it up for long enough
    watching = browse(hosts, backend)
    watching.document(event="added")  # in the end it's there
    assert sum("announced as" in line for line in agent.all_said()) <= 3 + quiet


def test_a_browser_whose_address_changes_sees_no_removal_of_a_running_agent(hosts, backend) -> None:
    hosts.cable()
    watching, agent = browse(hosts, backend), announce(hosts, backend)
    watching.document(event="added")
    hosts.other.ip("address", "flush", "dev", "theirs0", "to", "10.77.0.0/24")
    hosts.other.ip("address", "add", "10.77.0.22/24", "dev", "theirs0")
    # It's at it: what is told from now on was heard with the new address, and who said nothing has been given up.
    time.sleep(9)
    agent.tell({"version": "2", "skills": []})
    watching.document(event="updated", version="2")
    assert not any('"removed"' in line for line in watching.said)


def test_the_interfaces_of_the_machine_are_listed_correctly(hosts, backend) -> None:
    hosts.cable(0)
    hosts.cable(1, family="ipv4")
    one = hosts.one
    one.ip("address", "add", "2001:db8::1/64", "dev", "ours0", "nodad")
    one.ip("address", "add", "2001:db8::2/64", "dev", "ours0", "nodad", "preferred_lft", "0")  # on its way out
    one.set("ipv6/conf/ours0/dad_transmits", 100)
    one.set("ipv6/conf/ours0/accept_dad", 1)
    one.ip("address", "add", "2001:db8::3/64", "dev", "ours0")  # on trial
    one.ip("address", "add", "10.77.0.3/24", "dev", "ours0", "label", "ours0:1")  # an alias
    one.ip("link", "add", "bridge0", "type", "bridge")
    one.ip("link", "set", "ours1", "master", "bridge0")
    one.ip("link", "add", "down0", "type", "veth", "peer", "name", "down1")
    one.ip("address", "add", "192.0.2.1/24", "dev", "down0")
    script = (
        "from asap_adapters.mdns.interfaces import machine_links\n"
        "from asap_core.net.interfaces import select_links, why_unused\n"
        "import json\n"
        "for link in machine_links():\n"
        "    print(json.dumps([link.name, link.addresses, link.loopback, why_unused(link)]))\n"
    )
    shown = {line[0]: line[1:] for line in map(json.loads, one.run(sys.executable, "-c", script).stdout.splitlines())}
    assert shown == {
        "lo": [["127.0.0.1", "::1"], True, None],
        "ours0": [["10.77.0.1", "10.77.0.3", "2001:db8::1", one.link_local("ours0")], False, None],
        "down0": [["192.0.2.1"], False, "it's down, or takes no multicast"],
    }


@on_both
def test_without_a_multicast_interface_an_error_is_printed(hosts, backend) -> None:
    hosts.cable(family="ipv4")
    hosts.one.ip("link", "set", "ours0", "multicast", "off")
    serving = hosts.one.asap(
        "serve", "--host", "10.77.0.1", "--public-url", "http://10.77.0.1:8000", "--mdns", "--backend", backend
    )
    assert serving.line(lambda line: line if "mDNS" in line else None) == (
        "asap: mDNS needs multicast, and no interface here has it (ours0: it's down, or takes no multicast); "
        "a container may need host networking\n"
    )
    assert serving.popen.wait(60) == 1
    looking = hosts.one.run(sys.executable, "-m", "asap_adapters.cli", "browse", "--interface", "ours0")
    assert (looking.returncode, looking.stdout) == (1, "")
    assert "a container may need host networking" in looking.stderr


# --- avahi -----------------------------------------------------------------------------------------------------------


def with_avahi(host, *command):
    """Run a command on a host that has avahi's daemon."""
    for program in ("avahi-daemon", "avahi-browse", "avahi-publish", "dbus-daemon", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} isn't installed (apt-get install avahi-daemon avahi-utils dbus)")
    return host.start(
        "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", HERE / "avahi.sh", *command, ends_by_eof=True
    )


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
def test_avahi_sees_our_agents_come_and_go(hosts, family, backend) -> None:
    hosts.cable(family=family)
    watching = with_avahi(hosts.other, "stdbuf", "-oL", "avahi-browse", "--parsable", "--resolve", "_asap._tcp")
    agent = announce(hosts, backend)
    wanted = {"ipv4": ["IPv4"], "ipv6": ["IPv6"], "dual": ["IPv4", "IPv6"]}[family]
    seen: dict[str, Any] = {}
    while set(seen) != set(wanted):
        fields = watching.line(lambda line: line.split(";", 9) if line.startswith("=;") else None)
        seen[fields[2]] = fields
    address = "10.77.0.1" if "IPv4" in seen else hosts.one.link_local("ours0")
    for _, interface, _, name, kind, _, target, at, port, txt in seen.values():
        assert (interface, name, kind, port) == ("theirs0", "Far-Agent", "_asap._tcp", str(PORT))
        assert target.endswith(".local")
        assert at in {"10.77.0.1", hosts.one.link_local("ours0")} if family != "ipv4" else at == "10.77.0.1"
        shown = f"[{address}]" if ":" in address else address
        assert f'"manifest_url=http://{shown}:{PORT}{PATH}"' in txt
        assert '"id=urn:asap:agent:far"' in txt
    agent.popen.stdin.close()
    watching.line(lambda line: line.startswith("-;theirs0"))


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
def test_an_announcement_of_avahi_is_seen_by_our_browser(hosts, family, backend) -> None:
    hosts.cable(family=family)
    watching = browse(hosts, backend)
    address = "10.77.0.1" if family != "ipv6" else hosts.one.link_local("ours0")
    url = f"http://{f'[{address}]' if ':' in address else address}:{PORT}/m"
    publishing = with_avahi(
        hosts.one, "avahi-publish", "-s", "Foreign Agent", "_asap._tcp", PORT,
        f"manifest_url={url}", "version=3", "capabilities=a,b", "id=urn:asap:agent:foreign",
    )  # fmt: skip
    found = watching.document(event="added")
    assert (found["instance"], found["agent_id"], found["version"]) == ("Foreign Agent", "urn:asap:agent:foreign", "3")
    assert found["skills"] == ["a", "b"]
    zoned = url.replace("]", "%theirs0]")
    assert (found["manifest_url"], found["link"]) == (zoned, "theirs0")
    publishing.end()
    watching.document(event="removed")
