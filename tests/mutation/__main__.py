"""`python -m tests.mutation`: plant each mutant, run the module's tests, and say which mutants they don't notice."""

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.mutation.mutants import Module, Mutant
from tests.mutation.runs import Broken, judged
from tests.mutation.survivors import known_survivors

ROOT = Path(__file__).parent.parent.parent
# The tests of exchanges and calls, one file for each state or document.
EXCHANGE = tuple(
    f"server/{name}"
    for name in (
        "admit", "agent", "authenticate", "dispatch", "events", "fork", "hold", "metrics", "moves", "open",
        "outgoing", "read_body", "refusals", "respond", "take_limit", "wellknown",
    )
)  # fmt: skip
# Each module, and the tests that hold it to what it promises.
TESTS = {
    "asap_core.admission.replay": ("admission/replay", "admission/journal"),
    "asap_core.auth.principal": ("auth/principal", *EXCHANGE, "auth/dpop_server", "auth/jwt", "auth/claims"),
    "asap_core.admission.idempotency": ("admission/idempotency", "admission/journal"),
    "asap_core.admission.ratelimit": ("admission/ratelimit", *EXCHANGE),
    "asap_core.server.exchange": (
        *EXCHANGE,
        "auth/principal",
        "http/head",
        "http/messages",
        "auth/dpop_server",
        "http/pages",
    ),
    "asap_core.server.call": (*EXCHANGE, "wire/handler_reply"),
    "asap_core.server.call_context": (*EXCHANGE, "auth/claims", "auth/dpop_server"),
    "asap_core.admission.admission": ("admission/admission", "admission/journal", *EXCHANGE),
    "asap_core.http.proxies": ("http/proxies",),
    "asap_core.admission.journal": ("admission/journal",),
    "asap_core.admission.state_file": ("admission/state_file", "admission/journal"),
    "asap_core.admission.redis": ("admission/redis",),
    "asap_core.http.caching": ("http/caching", "http/fields", "client/document_cache", "client/registry_cache"),
    "asap_core.flights": ("flights", "client/document_cache"),
    "asap_core.client.client": ("client/client", "client/argument_checks"),
    "asap_core.client.programs": ("client/programs", "client/program_laws"),
    "asap_core.client.body_reader": ("client/body_reader", "client/documents"),
    "asap_core.client.runtime": ("client/runtime", "client/program_laws", "client/document_cache"),
    "asap_core.client.requests": ("client/requests", "client/documents", "client/delivery"),
    "asap_core.client.documents": (
        "client/documents",
        "client/document_cache",
        "client/program_laws",
        "client/discovery",
        "client/client",
    ),
    "asap_core.client.connections": ("client/connections",),
    "asap_core.client.places": ("client/places",),
    "asap_core.net.environment_proxies": ("net/environment_proxies",),
    "asap_core.client.http_exchange": ("client/http_exchange",),
    "asap_core.client.options": ("client/options", "client/argument_checks"),
    "asap_core.client.document_cache": ("client/document_cache",),
    "asap_core.client.trust": ("client/trust", "client/wanted"),
    "asap_core.client.search": ("client/search", "client/trust"),
    "asap_core.client.announced_manifests": ("client/announced_manifests", "client/discovery"),
    "asap_core.client.discovery": ("client/discovery", "client/announced_manifests"),
    "asap_core.client.registry_cache": ("client/registry_cache",),
    "asap_core.client.registry_copies": ("client/registry_copies", "client/registry_cache"),
    "asap_core.lru": ("lru",),
    "asap_core.wire.plain_call": ("wire/plain_call",),
    "asap_core.wire.registry_index": ("wire/registry_reader", "client/registry_copies"),
    "asap_core.wire.registry_reader": ("wire/registry_reader", "client/registry_copies"),
    "asap_core.http.head": ("http/head", "http/plain_head"),
    "asap_core.http.messages": ("http/messages", "http/head", *EXCHANGE),
    "asap_core.auth.claims": ("auth/claims", "auth/jwt", "auth/dpop_server"),
    "asap_core.auth.jws": ("auth/jws", "auth/dpop_server"),
    "asap_core.auth.keyring": (
        "auth/keyring",
        "auth/jwt",
        "client/jwt_authentication",
        "client/jwt_authentication_laws",
    ),
    "asap_core.auth.jwks": ("auth/jwks", "auth/dpop_server"),
    "asap_core.auth.jwt": ("auth/jwt", "auth/claims", "auth/dpop_server"),
    "asap_core.auth.introspection": ("auth/introspection",),
    "asap_core.auth.introspection_response": ("auth/introspection_response", "auth/introspection"),
    "asap_core.auth.token_cache": ("auth/token_cache",),
    "asap_core.auth.client_credentials": ("auth/client_credentials",),
    "asap_core.auth.dpop": ("auth/dpop",),
    "asap_core.auth.dpop_client": ("auth/dpop",),
    "asap_core.auth.dpop_server": ("auth/dpop_server",),
    "asap_core.auth.provider_metadata": ("auth/provider_metadata",),
    "asap_core.auth.authorization": ("auth/authorization",),
    "asap_core.client.jwt_authentication": ("client/jwt_authentication",),
    "asap_core.client.token_introspection": ("client/token_introspection",),
    "asap_core.client.provider": ("client/provider",),
    "asap_core.client.tokens": ("client/tokens", "client/credential_laws", "client/sending"),
    "asap_core.client.sending": ("client/sending", "client/sending_laws"),
}
# Each by the last part of its name: that of survivors in docs/mutation.md.
PLACES = {name.rpartition(".")[2]: name for name in TESTS}
LEAST = 0.95
TELL_EVERY = 5.0


def files_of(module: str) -> list[Path]:
    return [
        (ROOT / "tests" / "core" / place).with_name(f"test_{place.rpartition('/')[2]}.py")
        for place in TESTS[PLACES[module]]
    ]


def chosen(arguments: argparse.Namespace) -> list[Mutant]:
    mutants = [one for name in arguments.module or map(label, TESTS) for one in read(name).mutants()]
    if arguments.sample is None or arguments.sample >= len(mutants):
        return mutants
    drawn = random.Random(arguments.seed).sample(range(len(mutants)), arguments.sample)
    return [mutants[number] for number in sorted(drawn)]


def read(name: str) -> Module:
    return Module.read(name, ROOT / f"{PLACES[name].replace('.', '/')}.py")


def label(module: str) -> str:
    """By what a module is named in the table of survivors: not by its folder, so that it may move."""
    return module.rpartition(".")[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--module", choices=list(PLACES), action="append", help="only this one; may be given again")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn by --seed")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--list", action="store_true", help="list the mutants and run nothing")
    arguments = parser.parse_args()
    mutants = chosen(arguments)
    if arguments.list:
        for one in mutants:
            print(described(one))
        return 0
    if os.environ.get("PYTHONHASHSEED") != "0":  # which shard a key is in must be the same each time
        os.environ |= {"PYTHONHASHSEED": "0", "HYPOTHESIS_PROFILE": "mutation", "PYTHONDONTWRITEBYTECODE": "1"}
        os.execv(sys.executable, [sys.executable, "-m", "tests.mutation", *sys.argv[1:]])
    try:
        # Of a few mutants the known survivors may be any share.
        return report(mutants, survivors_of(mutants), least=0.0 if arguments.sample or arguments.module else LEAST)
    except Broken:
        print("\nThe tests don't pass without a mutant: python -m pytest tests/core says why")
        return 2


def described(mutant: Mutant) -> str:
    place = f"{mutant.module.name}:{mutant.line} {mutant.function}".rstrip()
    return f"{place}\n    - {mutant.was}\n    + {mutant.became}"


def survivors_of(mutants: Sequence[Mutant]) -> list[Mutant]:
    """Run them, telling how far it is."""
    print(f"{len(mutants)} mutants; first the tests without any", flush=True)
    begun = told = 0.0
    survivors: list[Mutant] = []
    for done, (mutant, killed) in enumerate(judged(mutants, {name: files_of(name) for name in PLACES}), start=1):
        now = time.monotonic()
        begun, told = begun or now, told or now
        if not killed:
            survivors.append(mutant)
            print(f"survived: {described(mutant)}", flush=True)
        if now - told > TELL_EVERY or done == len(mutants):
            told = now
            left = (now - begun) / done * (len(mutants) - done)
            counts = f"{done} of {len(mutants)}, {done - len(survivors)} killed, {len(survivors)} survived"
            print(f"{mutant.module.name}: {counts}, about {left:.0f} s left", flush=True)
    return survivors


def report(mutants: Sequence[Mutant], survivors: Sequence[Mutant], *, least: float) -> int:
    """Print the table; 1 where a survivor isn't explained, or fewer than `least` were killed."""
    known = known_survivors(ROOT)
    unknown = [one for one in survivors if one.identity not in known]
    planted, left = (Counter(one.module.name for one in many) for many in (mutants, survivors))
    print(f"\n{'module':<24}{'mutants':>9}{'killed':>9}{'survived':>10}{'percent':>9}")
    for name in [*planted, "all"]:
        total, alive = (len(mutants), len(survivors)) if name == "all" else (planted[name], left[name])
        print(f"{name:<24}{total:>9}{total - alive:>9}{alive:>10}{100 * (total - alive) / total:>9.1f}")
    for one in unknown:
        print(f"\nnot explained in docs/mutation.md: {described(one)}")
    alive_still = {one.identity for one in survivors}
    for one in mutants:
        if one.identity in known and one.identity not in alive_still:
            print(f"\nkilled by now, and to be taken out of docs/mutation.md: {described(one)}")
    share = 1 - len(survivors) / len(mutants)
    if share < least:
        print(f"\nonly {share:.1%} were killed; {least:.0%} must be")
    return 1 if unknown or share < least else 0


if __name__ == "__main__":
    raise SystemExit(main())
