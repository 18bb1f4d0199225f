"""`asap discover`, `health`, `browse`, `registry` and `resolve`, so far as they need no agent."""

import json
from pathlib import Path

import pytest

from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_core import to_json
from asap_core.wire.registry import make_entry

NOBODY = "urn:asap:agent:nobody"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ("discover http://example.com", 1, "--allow-http example.com"),
        ("discover https://10.0.0.1", 1, "it is private (RFC 1918); allow it with --allow-network 10.0.0.0/8"),
        ("discover https://example.com:25", 1, "allow it with --allow-port 25"),
        ("discover https://x.example --allow-network 10.0.0.1/8", 2, "a network such as 10.0.0.0/8"),
        ("discover https://x.example --allow-port 0", 2, "a port from 1 to 65535"),
        ("discover 127.0.0.1:18000", 1, "its scheme is missing; expected http://127.0.0.1:18000"),
        ("discover http://169.254.169.254", 1, "link-local (RFC 3927); allow it with --allow-network"),
        ("discover nonsense", 1, "its scheme is missing; expected https://nonsense"),
        ("discover ''", 1, "can't be read as a URL"),
        ("discover http://[::1", 1, "can't be read as a URL"),
        ("discover http://127.0.0.1:99999", 1, "can't be read as a URL"),
        ("discover ftp://127.0.0.1", 1, "neither https nor http"),
        ("discover http://127.0.0.1/?page=1", 1, "no query"),
        ("discover http://me:hunter2@127.0.0.1", 1, "it carries credentials; leave them out"),
        ("discover http://127.0.0.1:1", 1, "no answer from http://127.0.0.1:1/"),
        ("discover http://127.0.0.1:1 --expect me", 2, "--expect: expected an agent URN"),
        ("discover http://127.0.0.1:1 --backend curio", 2, "'trio', 'asyncio'"),
        ("discover http://127.0.0.1:1 --ca-file no-such-file", 2, "--ca-file: expected certificates"),
        (["discover", "http://127.0.0.1:1", "--ca-file", __file__], 2, "--ca-file: expected certificates"),
        ("health http://127.0.0.1:1", 1, "can't connect"),
        ("browse --wait x", 2, "seconds above 0"),
        ("browse --wait nan", 2, "seconds above 0"),
        ("browse --wait -1", 2, "seconds above 0"),
        ("registry find r.json --skil x", 2, "(see asap registry find --help)"),
        ("registry find file:///etc/registry.json", 1, "its path without file://"),
        ("registry", 2, "COMMAND"),
        ("registry find no-such-file", 1, "no-such-file: No such file"),
        ("registry find .", 1, ".: Is a directory"),
        ("registry find http://127.0.0.1:1/r.json", 1, "can't connect"),
        ("registry find x --id me", 2, "--id: expected an agent URN"),
        ("registry entry http://127.0.0.1:1", 1, "can't connect"),
        ("resolve me", 2, "URN: expected an agent URN"),
        ("resolve urn:asap:agent:a --require-version soon", 2, "a version such as 2.1"),
        ("resolve urn:asap:agent:a --wait 0", 2, "seconds above 0"),
    ],
)
def test_an_error_is_one_line(refuses, argv, code, says) -> None:
    refuses(argv, code, says)


@pytest.fixture
def entry() -> object:
    url = "https://a.example"
    return to_json(make_entry(echo_manifest(ECHO_ID, url), {"http": url}))


@pytest.fixture
def registry(tmp_path: Path, entry: object) -> str:
    """A registry with an entry that can be read, and one that can't."""
    document = {"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": [entry, {"id": 1}]}
    (tmp_path / "registry.json").write_text(json.dumps(document))
    return str(tmp_path / "registry.json")


class TestRegistryFind:
    def test_find_shows_the_entries_that_match_and_names_broken_ones(self, asap, registry, entry) -> None:
        code, out, err = asap("registry", "find", registry, "--skill", "echo", "--json")
        assert (code, json.loads(out)) == (0, [entry])
        # As people count.
        assert "entry 2 is skipped: id: expected an agent URN" in err
        assert asap("registry", "find", registry, "--id", ECHO_ID)[1].splitlines()[1].split()[2] == ECHO_ID

    def test_find_fails_if_no_entry_matches(self, asap, registry) -> None:
        code, out, err = asap("registry", "find", registry, "--skill", "other")
        assert (code, out, err.endswith("asap: no entry matches\n")) == (1, "", True)

    def test_find_needs_a_path_for_a_file(self, asap, registry) -> None:
        code, _, err = asap("registry", "find", Path(registry).as_uri())
        assert (code, "where a file will do, its path without file://" in err) == (1, True)


class TestResolve:
    @pytest.mark.parametrize("backend", ["trio", "asyncio"])
    def test_an_unknown_agent_is_not_found(self, asap, registry, backend) -> None:
        where = ("--registry", registry, "--no-mdns", "--backend", backend)
        code, out, err = asap("resolve", NOBODY, *where, "--explain")
        assert (code, err) == (1, f"asap: {NOBODY} isn't found\n")
        assert out == f"  {registry}: not listed among 1; 1 of its entries can't be read\n"
        code, out, _ = asap("resolve", NOBODY, *where, "--json")
        assert (code, json.loads(out)) == (1, {"found": False})

    def test_an_agent_that_is_revoked_is_not_found(self, asap, registry, tmp_path) -> None:
        revoked = tmp_path / "revoked.json"
        revoked.write_text(json.dumps({"version": "1.0", "revoked": [{"urn": ECHO_ID, "reason": "retired"}]}))
        code, _, err = asap("resolve", ECHO_ID, "--registry", registry, "--no-mdns", "--revocations", str(revoked))
        assert (code, f"{revoked}: revoked: retired" in err) == (1, True)
