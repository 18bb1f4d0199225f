"""What is fuzzed: for each target one function of bytes, which raises if an invariant is broken.

Each has a defect that `--planted` plants; it breaks the invariant for some inputs, and for no seed.
"""

import gzip
import ipaddress
import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import count
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
from attrs import frozen

from asap_core import Agent, Authenticate, ManualClock, Policy, ReadBody, StartPolicy
from asap_core.auth import jwt
from asap_core.auth.claims import Accepted, Rejected
from asap_core.auth.jwks import public_jwk, read_key, read_key_set
from asap_core.auth.jwt import KeysUnavailable, VerifySignature
from asap_core.auth.principal import InsufficientScope
from asap_core.client.runtime import Runtime
from asap_core.clock import WallTime
from asap_core.errors import InvalidDocument
from asap_core.http.caching import FreshnessPolicy, freshness_of
from asap_core.http.fields import parse_http_date
from asap_core.mdns import dnssd
from asap_core.net.interfaces import Link
from asap_core.wire import codec, json as reader, plain_call, rules
from asap_core.wire.envelope import Envelope
from asap_core.wire.json import MAX_DEPTH, NotJson, read_json, read_json_at, write_json
from asap_core.wire.rules import InvalidValue, parse_timestamp
from tests.builders import call, manifest
from tests.core.auth.tokens import AUDIENCE, GOOD, GX, GY, ISSUER, WALL, b64, judge, token
from tests.core.client.test_program_laws import BAD, GOOD as URLS, REPLIES, ProgramLaws
from tests.core.server.exchanges import finish, head
from tests.core.wire.test_plain_call import OURS, REFERENCE, compact, law, spaced
from tests.fuzz import head_fuzzer


@frozen
class Target:
    """A function to search, and what the search begins with.

    check: raises, if the input breaks the invariant.
    plant: plants a defect, for this process.
    words: what inputs are likely to hold.
    """

    check: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    plant: Callable[[], None]
    words: tuple[bytes, ...] = ()


def outcome(read: Callable[[], object], *refusals: type[Exception]) -> str:
    """The value, by its text too, since 1 == 1.0 == True; or the name of the refusal."""
    try:
        return repr(read())
    except refusals as error:
        return type(error).__name__


# --- heads -----------------------------------------------------------------------------------------------------------


def check_head(data: bytes) -> None:
    """Our reader of heads and h11 agree, however a head is divided. The first byte says where."""
    cut, text = (data[0], data[1:401]) if data else (0, b"")
    head_fuzzer.check(text, min(cut, len(text)))


def end_late_after_five_fields() -> None:
    read = head_fuzzer.by_ours

    def wrong(data: bytes) -> Any:
        plain = read(data)
        return attrs.evolve(plain, end=plain.end + 1) if plain is not None and len(plain.headers) > 4 else plain

    head_fuzzer.by_ours = wrong


# --- JSON ------------------------------------------------------------------------------------------------------------


def slowly(data: bytes) -> object:
    value = reader._read_slowly(data)
    reader._check_depth(value, MAX_DEPTH)
    return value


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len(dict(pairs)) == len(pairs), "a key twice"
    return dict(pairs)


def check_json(data: bytes) -> None:
    """The fast reader and the one by the standard library agree; what they accept is strict, and can be written."""
    found = outcome(lambda: read_json(data), NotJson)
    assert found == outcome(lambda: slowly(data), NotJson)
    if found == "NotJson":
        return
    value, text = read_json(data), data.decode()
    assert repr(json.loads(text, object_pairs_hook=unique)) == found
    assert repr(read_json(write_json(value))) == found
    begin = len(text) - len(text.lstrip(" \t\r\n"))
    at, end = read_json_at(text, begin)
    assert (repr(at), text[end:].strip(" \t\r\n")) == (found, "")


def take_any_text_that_msgspec_takes() -> None:
    def wrong(data: bytes) -> object:
        try:
            return reader._decode(data)
        except (ValueError, RecursionError):
            return reader._UNDECIDED

    reader._read_fast = wrong


# --- calls and envelopes ---------------------------------------------------------------------------------------------


def check_codec(data: bytes) -> None:
    """What the fast readers of calls and envelopes accept, the full ones accept and read the same."""
    law(plain_call.read_plain_call, data, MAX_DEPTH)
    try:
        value: Any = read_json(data)
        value = value["params"]["envelope"]
    except (NotJson, LookupError, TypeError):
        return
    quick = outcome(lambda: codec._quick(Envelope)(value), InvalidValue)
    full = outcome(lambda: codec.decode_as(value, Envelope, "envelope", ()), InvalidDocument)
    assert quick == full or (quick, full) == ("InvalidValue", "InvalidDocument")


def take_any_sender() -> None:
    vars(plain_call)["URN"] = SimpleNamespace(fits=lambda _: True)


# --- exchanges -------------------------------------------------------------------------------------------------------


AGENT: Final = Agent(manifest(), policy=Policy(peer_limits=(), start=StartPolicy.OPEN, max_body=2_000))


def decision(pieces: list[bytes], **headers: str) -> tuple[int, bytes, object]:
    agent, numbers = AGENT.unbound(), count()
    agent.bind(clock=ManualClock(), ids=lambda: f"id-{next(numbers)}", key=b"k" * 32)
    state: Any = agent.open(head(**headers))
    assert not isinstance(state, Authenticate)
    for piece in pieces:
        if isinstance(state, ReadBody):
            state = state.feed(piece)
    response = finish(state.end() if isinstance(state, ReadBody) else state)
    fields = [field for field in response.headers if field[0] != b"connection"]
    return response.status, response.body, fields


def check_exchange(data: bytes) -> None:
    """However a body is divided, the decision is the same, and never an internal error.

    The first byte says where it's divided, the second whether it's compressed: no, by this function, by the input.
    """
    if len(data) < 2:
        return
    cut, coded, body = data[0], data[1] % 3, data[2:]
    headers = {"content_encoding": "gzip"} if coded else {}
    body = gzip.compress(body, mtime=0) if coded == 1 else body
    size = cut % 32
    pieces = [body[at : at + size] for at in range(0, len(body), size)] if size else [body]
    whole = decision([body], **headers)
    assert whole == decision(pieces, **headers)
    assert whole[0] in {200, 400, 413}, whole
    assert b'"code":-32603' not in whole[1], whole


def lose_a_quote_at_the_start() -> None:
    feed = ReadBody.feed

    def wrong(self: ReadBody, data: bytes) -> Any:
        return feed(self, data[1:] if data[:1] == b'"' else data)

    ReadBody.feed = wrong  # type: ignore[method-assign, assignment]


# --- times -----------------------------------------------------------------------------------------------------------

RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,6})\d{0,12})?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
IMF_DATE: Final = re.compile(r"\w{3}, \d\d \w{3} (?!00)\d{4} (?!23:59:60)[\d:]{8} GMT", re.ASCII)
FRESHNESS: Final = FreshnessPolicy()


def by_hand(match: re.Match[str]) -> datetime | None:
    day, time, fraction, sign, hours, minutes = match.groups()
    try:
        local = datetime.strptime(f"{day} {time} +0000", "%Y-%m-%d %H:%M:%S %z")
        moment = local + timedelta(microseconds=int(f"{fraction or 0:0<6}"))
        if sign is None:
            return moment
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        return None if offset >= timedelta(days=1) else moment - offset if sign == "+" else moment + offset
    except (ValueError, OverflowError):
        return None


def check_freshness(data: bytes) -> None:
    """Timestamps and dates are what `datetime` and `email` read, or refused; lifetimes keep the policy's bounds."""
    text = data.decode("latin-1")
    read = parse_timestamp(text)
    assert read is text or (isinstance(read, datetime) and read.tzinfo is UTC), read
    match = RFC3339.fullmatch(text)
    if match is not None:
        assert (None if read is text else read) == by_hand(match)
    date = parse_http_date(text, wall=WALL)
    if date is not None and IMF_DATE.fullmatch(text):
        assert date == parsedate_to_datetime(text).timestamp()
    lines = [line.partition(":") for line in text.split("\n")]
    found = freshness_of([(name, value) for name, _, value in lines], policy=FRESHNESS, wall=WallTime(WALL))
    for life, most in (
        (found.fresh_for, FRESHNESS.most),
        (found.revalidate_for, FRESHNESS.stale_while_revalidate),
        (found.error_for, FRESHNESS.most),
    ):
        assert 0 <= life <= max(most, FRESHNESS.default), found


def forget_the_sign_of_an_offset() -> None:
    read = rules._from_iso
    rules._from_iso = lambda iso, otherwise: read(iso[:-6] + iso[-6:].replace("-", "+"), otherwise)


# --- DNS-SD ----------------------------------------------------------------------------------------------------------

LINK: Final = Link(name="eth0", index=2, addresses=("192.0.2.9", "fe80::9"))


def ip(text: str) -> object:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def check_dnssd(data: bytes) -> None:
    """A record is read or refused, never an exception; a manifest URL is on the host that announces it.

    Lines: the SRV record's target, an address, another one, then strings of the TXT record.
    """
    server, *rest = data.split(b"\n")
    target, addresses = server.decode("utf-8", "replace"), [line.decode("utf-8", "replace") for line in rest[:2]]
    pairs = [line.partition(b"=") for line in rest[2:]]
    read = dnssd.read_announcement(
        instance="a",
        server=target,
        port=80,
        addresses=addresses,
        txt={key: value for key, _, value in pairs},
        link=LINK,
    )
    if isinstance(read, dnssd.UnusableRecord):
        return
    parts = urlsplit(read.manifest_url)
    assert parts.scheme in {"http", "https"}, read
    assert (parts.username, parts.password) == (None, None), read
    host = (parts.hostname or "").lower()
    if host.rstrip(".").endswith(".local"):
        assert host.rstrip(".") == target.lower().rstrip("."), read
    elif host == "localhost":
        assert any(getattr(ip(text), "is_loopback", False) for text in addresses), read
    else:
        assert ip(host) is not None, read
        assert ip(host) in [ip(text) for text in addresses], read


def take_any_host() -> None:
    dnssd.is_announcer = lambda *_: True


# --- JWT and JWK -----------------------------------------------------------------------------------------------------


def check_jwt(data: bytes) -> None:
    """A token or a key set is accepted or refused by type; what is accepted says what it must.

    The first byte: a key set, a token as text, or its header and claims on two lines.
    """
    kind, data = data[:1], data[1:]
    if kind == b"k":
        check_keys(data)
        return
    text = data.decode("latin-1")
    if kind != b"t":
        header, _, claims = data.partition(b"\n")
        text = f"{b64(header)}.{b64(claims)}.{b64(bytes(64))}"
    state = judge(text)
    assert not isinstance(state, VerifySignature)
    assert isinstance(state, Accepted | Rejected | InsufficientScope | KeysUnavailable), state
    if isinstance(state, Accepted):
        said, told = (json.loads(urlsafe_b64decode(part + "==")) for part in text.split(".")[:2])
        assert said["alg"] in {"EdDSA", "Ed25519"}, said
        assert not {"crit", "b64"} & set(said), said
        assert told["iss"] == ISSUER, told
        assert AUDIENCE in told["aud"], told
        assert told["exp"] + 30 > WALL, told
        assert told.get("nbf", 0) <= WALL + 30, told


def check_keys(data: bytes) -> None:
    try:
        found = read_key_set(data)
    except InvalidDocument:
        return
    for key in found.keys:
        again = read_key({**public_jwk(key), **({} if key.kid is None else {"kid": key.kid})})
        assert again == key


def judge_by_a_clock_that_is_years_late() -> None:
    right = vars(jwt)["judge_claims"]
    vars(jwt)["judge_claims"] = lambda jws, policy, **told: right(jws, policy, **{**told, "wall": WALL - 10**9})


TIMELESS: Final = {"iss": ISSUER, "aud": [AUDIENCE], "sub": GOOD["sub"], "exp": int(WALL) + 60}
KEY_SET: Final = {
    "keys": [
        {"kty": "OKP", "crv": "Ed25519", "x": b64(b"\x01" * 32), "kid": "a", "use": "sig", "key_ops": ["verify"]},
        {"kty": "EC", "crv": "P-256", "x": b64(GX.to_bytes(32)), "y": b64(GY.to_bytes(32)), "alg": "ES256"},
        {"kty": "RSA", "n": b64(b"\xff" * 256), "e": "AQAB"},
    ]
}


# --- client programs -------------------------------------------------------------------------------------------------

ANSWERS: Final = sorted(REPLIES)
SECONDS: Final = (0.3, 1.0, 7.0, 40.0)


def check_client(data: bytes) -> None:
    """Programs that look up documents keep their laws, with any outcomes in any order; two bytes are one command."""
    laws = ProgramLaws()
    for what, which in zip(data[:80:2], data[1:80:2], strict=False):
        match what % 10:
            case 0 | 1:
                laws.find(URLS[which % 3])
            case 2:
                laws.find_what_is_refused(BAD[which % 3])
            case 3:
                laws.refresh(URLS[which % 3], 5.0 * (which % 2))
            case 4 | 5:
                laws.tell(which // 32, ANSWERS[which % len(ANSWERS)])
            case 6:
                laws.wake_in_vain(which % 8)
            case 7:
                laws.leave(which % 8, which > 127)
            case 8:
                laws.time_passes(SECONDS[which % 4])
            case _:
                laws.forget((None, *URLS)[which % 4])
        laws.each_who_waits_is_in_the_tables_and_nobody_else()
    laws.teardown()


def undo_nothing() -> None:
    Runtime.undo_after = lambda *_: None  # type: ignore[method-assign]


# --- the table -------------------------------------------------------------------------------------------------------

CALL: Final = compact(call())
HEADER: Final = b'{"alg":"EdDSA","kid":"k1"}'
TARGETS: Final = {
    "head": Target(
        check_head,
        tuple(b"\x05" + seed for seed in head_fuzzer.SEEDS),
        end_late_after_five_fields,
        head_fuzzer.PIECES,
    ),
    "json": Target(
        check_json,
        (
            b'{"a":1}', b'{"a":1,"b":[true,null,-1.5e3,"x\\u00e9\\ud83d\\ude00"]}', b" [0, 1.0, {}]\n", b'{"a":NaN}',
            b'"\\ud800"',
        ),
        take_any_text_that_msgspec_takes,
        (b',"a":1', b'"a":', b"\\ud800", b"\\u00e9", b"NaN", b"1e999", b"-0", b"\xef\xbb\xbf", b"[[[[[[", b"]]]]]]"),
    ),
    "codec": Target(
        check_codec,
        (compact(OURS), spaced(OURS), compact(REFERENCE), spaced(REFERENCE)),
        take_any_sender,
        (*(b'"%s":' % key.encode() for key in OURS), b"urn:asap:agent:", b"null", b"\\u0061", b'"nonce":', b"1.0"),
    ),
    "exchange": Target(
        check_exchange,
        (b"\0\0" + CALL, b"\0\1" + CALL, b"\0\2" + gzip.compress(CALL, mtime=0), b"\0\0[" + CALL + b"]"),
        lose_a_quote_at_the_start,
        (b'"nonce":', b'"idempotency_key":', b'"extensions":', b"null", b"urn:asap:agent:", b"[]", b"{}"),
    ),
    "freshness": Target(
        check_freshness,
        (
            b"2026-11-23T09:15:52.739152Z", b"2026-11-23t09:15:52+01:00", b"1763889352.5", b"2026-11-23",
            b"Sun, 15 Jun 2025 15:06:40 GMT", b"Sunday, 15-Jun-25 15:06:40 GMT", b"Sun Jun 15 15:06:40 2025",
            b"cache-control: max-age=60, stale-if-error=5\nage: 7\nexpires: Sun, 15 Jun 2025 15:06:40 GMT\nvary: a",
        ),
        forget_the_sign_of_an_offset,
        (b"-01:00", b"+23:59", b"9999-12-31", b"0001-01-01", b"23:59:60", b"no-cache", b"=", b'"', b"max-age=", b"Z"),
    ),
    "dnssd": Target(
        check_dnssd,
        (
            b"h.local.\n192.0.2.7\nfe80::7\nmanifest_url=http://192.0.2.7:80/m\nid=urn:asap:agent:a\nversion=1",
            b"h.local.\n192.0.2.7\nfe80::7\nmanifest_url=http://[fe80::7%25x]/m\ncapabilities=a,b",
            b"h.local.\n192.0.2.7\n::1\nmanifest_url=https://H.local/m",
            b"h.local.\n127.0.0.1\n::1\nmanifest_url=http://localhost/m",
        ),
        take_any_host,
        (b"manifest_url=", b"http://", b"@", b"[::1]", b"%25", b".local", b"localhost", b"\\", b"#", b"?", b"0x7f.1"),
    ),
    "jwt": Target(
        check_jwt,
        (
            b"t" + token().encode(), b"c" + HEADER + b"\n" + compact(GOOD), b"k" + compact(KEY_SET),
            b"c" + compact({"alg": "EdDSA", "typ": "at+jwt"}) + b"\n" + compact(TIMELESS),
        ),
        judge_by_a_clock_that_is_years_late,
        (b'"crit":', b'"b64":', b'"alg":"none"', b'"exp":', b'"nbf":', b"null", b"1e999", b'"kid":', b'"d":', b"AQAB"),
    ),
    "client": Target(
        check_client,
        (bytes((0, 0, 0, 0, 4, 1, 6, 0)), bytes((0, 0, 4, 0, 8, 2, 5, 9, 9, 0)), bytes(range(40))),
        undo_nothing,
    ),
}  # fmt: skip
