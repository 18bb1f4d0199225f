"""`asap serve` before it serves: what it refuses, and the policy that its options make."""

import sys

import pytest
from attrs import evolve, fields

from asap_adapters.cli import main
from asap_adapters.cli.serve_options import PolicyOptions
from asap_core import NoncePolicy, Policy
from asap_core.admission.ratelimit import Limit

ALICE = "urn:asap:agent:alice"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ("serve --prot 8000", 2, "unrecognized arguments: --prot (see asap serve --help)"),
        ("serve --host 0.0.0.0", 2, "--public-url"),
        ("serve --host ::", 2, "--public-url"),
        ("serve --host ''", 2, "--host '' needs --public-url"),
        ("serve --host 192.0.2.1", 2, "--host 192.0.2.1 needs --token, --token-file, --oidc or --introspect"),
        (f"serve --host no-such-host.invalid --token t={ALICE}", 1, "can't listen on no-such-host"),
        (f"serve --host 192.0.2.1 --token t={ALICE} --port 0", 1, "can't listen on 192.0.2.1"),
        ("serve --port x", 2, "from 0 to 65535"),
        ("serve --port 70000", 2, "from 0 to 65535"),
        (["serve", "--port", "²"], 2, "from 0 to 65535"),
        ("serve --public-url x", 2, "--public-url: expected a URL"),
        ("serve --public-url https://me:hunter2@a.example", 2, "--public-url: expected a URL"),
        ("serve --workers 2", 2, "--workers needs --redis"),
        ("serve --workers 0", 2, "a number of processes, 1 to 256"),
        ("serve --redis http://me:hunter2@127.0.0.1", 2, "--redis: expected a URL such as redis://"),
        ("serve --redis redis://me:hunter2@127.0.0.1:1 --port 0", 1, "redis at 127.0.0.1:1: "),
        ("serve --redis redis://x --state x", 2, "expected --state or --redis, not both: only one"),
        ("serve --redis redis://x --redis-file x", 2, "expected --redis or --redis-file, not both"),
        ("serve --redis-file no-such-file --port 0", 1, "no-such-file: No such file"),
        ("serve --principal-limit many", 2, "10/second;100/minute"),
        ("serve --rate-limit many", 2, "10/second;100/minute"),
        ("serve --rate-limit ''", 2, "10/second;100/minute"),
        ("serve --allow-origin app.example", 2, "an origin such as https://app.example, without path"),
        ("serve --allow-host http://a", 2, "a name such as agent.example, without scheme and port"),
        ("serve --max-body 0", 2, "number of bytes"),
        ("serve --max-body 1e9", 2, "number of bytes"),
        ("serve --nonce maybe", 2, "required"),
        ("serve --id me", 2, "--id: expected an agent URN"),
        ("serve --manifest no-such-file --port 0", 1, "no-such-file: No such file"),
        (["serve", "--manifest", __file__, "--port", "0"], 1, "is not a valid manifest"),
        ("serve --tls-cert no-such-file", 1, "no-such-file: No such file"),
        (["serve", "--tls-cert", __file__], 1, "expected a certificate chain and its key in PEM"),
        ("serve --tls-key x", 2, "--tls-key needs --tls-cert"),
    ],
)
def test_an_error_is_one_line(refuses, argv, code, says) -> None:
    refuses(argv, code, says)


def test_the_error_names_the_missing_extra_of_redis_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "coredis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "asap_adapters.stores.redis", raising=False)
    monkeypatch.setitem(sys.modules, "coredis", None)
    monkeypatch.setitem(sys.modules, "coredis.connection", None)
    assert main(["serve", "--port", "0", "--redis", "redis://127.0.0.1:1"]) == 1
    assert "pip install 'asap-sansio[redis]'" in capsys.readouterr().err.splitlines()[-1]


class TestPolicy:
    def test_given_options_override_those_of_the_agent(self) -> None:
        own = Policy(max_body=5_000, nonce=NoncePolicy.REQUIRED)
        options = PolicyOptions(max_body=6_000, principal_limits=(Limit(1, 1),), hosts=["a.example"])
        made = options.applied_to(own)
        assert made == evolve(own, max_body=6_000, principal_limits=(Limit(1, 1),), hosts=("a.example",))
        assert PolicyOptions().applied_to(own) == own

    def test_a_profile_replaces_the_policy_of_the_agent(self) -> None:
        own = Policy(max_body=5_000)
        assert PolicyOptions(profile="strict").applied_to(own) == Policy()
        reference = evolve(Policy.reference(), nonce=NoncePolicy.OFF)
        assert PolicyOptions(profile="reference", nonce="off").applied_to(own) == reference

    def test_an_empty_limit_overrides_that_of_the_agent(self) -> None:
        assert PolicyOptions(peer_limits=()).applied_to(Policy()) == Policy(peer_limits=())

    def test_all_bodies_together_have_room_for_the_largest(self) -> None:
        large = Policy().max_bodies + 1
        assert PolicyOptions(max_body=large).applied_to(Policy()).max_bodies == large

    def test_each_option_of_a_policy_is_a_field_of_the_policy(self) -> None:
        assert {each.name for each in fields(PolicyOptions)} <= {each.name for each in fields(Policy)}
