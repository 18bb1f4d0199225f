"""No report shows a token, nor what laws make of it; and the shell makes the same of `$TOKEN`."""

import base64
import itertools
import json
import subprocess

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from asap_core.clock import ManualClock
from asap_core.testing.laws.catalogue import LAWS
from asap_core.testing.laws.html_report import NamedRun, html_report
from asap_core.testing.laws.http_messages import Answer, HttpRequest
from asap_core.testing.laws.in_process import ALICE, BOB, CallableExecutor, local_executor
from asap_core.testing.laws.junit_report import junit_report
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.records import records, to_json
from asap_core.testing.laws.runner import Recorder, Report, run_laws
from asap_core.testing.laws.shell_lines import curl_line
from asap_core.testing.laws.survey import AgentUnderTest, survey
from asap_core.testing.laws.text_report import text_report
from asap_core.testing.laws.token_mask import TokenMask
from asap_core.testing.laws.verdicts import Breach
from asap_core.testing.planted.messages import PlantedOptions
from asap_core.testing.planted.trial import PlantedExecutor

# Letters of both cases, so that no word of a report is a token by chance.
TOKENS = st.text(st.sampled_from("qQxXzZ79"), min_size=4, max_size=60)
URL = "http://localhost"


def made(token: str) -> list[str]:
    """What a report may not show, in small letters. Three characters occur in other words."""
    basic = base64.b64encode(f"conform:{token}".encode()).decode()
    return [text.lower() for text in (token, basic, token[:-1]) if len(text) > 3]


def echoing(tokens: dict[str, str]) -> CallableExecutor:
    """The agent in this process, whose answers repeat what was sent."""
    clock = ManualClock()
    executor = local_executor(clock)
    known = {"token-of-alice": tokens[ALICE], "token-of-bob": tokens[BOB]}

    def send(request: HttpRequest) -> Answer:
        headers = [
            (name, next((f"Bearer {ours}" for ours, text in known.items() if value == f"Bearer {text}"), value))
            for name, value in request.headers
        ]
        answer = executor.send(evolve(request, headers=tuple(headers)))
        return evolve(answer, raw=answer.raw + request.to_bytes())

    return CallableExecutor(send, clock, executor.restart)


def surveyed(executor: CallableExecutor, tokens: dict[str, str]) -> Lab:
    numbers = itertools.count()
    clock = executor.clock or ManualClock()
    agent = AgentUnderTest(
        host="localhost", token=tokens[ALICE], urn=ALICE, other_token=tokens[BOB], other_urn=BOB,
        offers=executor.offers,
    )  # fmt: skip
    steps = survey(agent, wall=clock.wall, ids=lambda: f"conform-{next(numbers)}")
    lab = Recorder(executor, clock.monotonic).run(steps)
    assert isinstance(lab, Lab)
    return lab


def planted(tokens: dict[str, str]) -> PlantedExecutor:
    """An agent that takes tokens under any scheme and repeats them in errors."""
    breaks = ("errors.echo_token", "identity.any_scheme", "identity.basic")
    return PlantedExecutor(*breaks, options=PlantedOptions(tokens=tuple((text, urn) for urn, text in tokens.items())))


@pytest.mark.parametrize(
    "tokens", [("qXzQ7xZ9QqXzQ7xZ9Q", "zzQ9-xX7.qq_Zz~9"), ("QxZ7", "zXq9x")], ids=["long", "short"]
)
@pytest.mark.parametrize("make", [echoing, planted])
def test_no_report_shows_a_token_whatever_laws_make_of_it(make, tokens: tuple[str, str]) -> None:
    of = dict(zip((ALICE, BOB), tokens, strict=True))
    executor = make(of)
    laws = [each for each in LAWS if each.group not in {"limits", "compression"}]  # they send much, and no other token
    found = [*run_laws(laws, surveyed(executor, of), executor, executor.clock.monotonic)]
    sent = b"".join(each.sent for result in found for each in result.exchanges)
    for name in (b"$TOKEN_SWAPPED", b"$OTHER_TOKEN", b"Bearer $TOKENx"):
        assert name in sent
    # Failures show most.
    report = Report(URL, "urn:asap:agent:x", "strict", tuple(evolve(each, verdict=Breach("")) for each in found))
    found_records = records(report)
    page, junit = html_report([NamedRun("a", found_records)]), junit_report(found_records)
    for text in ("\n".join(text_report(report)), json.dumps(to_json(found_records)), page, junit):
        assert "$TOKEN" in text
        assert [each for token in tokens for each in made(token) if each in text.lower()] == []
    assert [each for token in tokens for each in made(token) for one in found if each in one.remark.lower()] == []


@given(TOKENS, st.sampled_from(["/asap?token={}", "/asap?a={}&b=1", "/{}"]))
def test_a_line_repeats_what_was_made_of_the_token(token: str, target: str) -> None:
    mask = TokenMask.of({token: "$TOKEN"})
    basic = base64.b64encode(f"conform:{token}".encode()).decode()
    for sent in (token, token[:-1], token.swapcase(), basic, f"{token}x"):
        request = HttpRequest("POST", target.format(sent), (("Authorization", f"Bearer {sent}"),), sent.encode())
        shown = evolve(
            request, target=mask.text(request.target), headers=(("Authorization", mask.text(f"Bearer {sent}")),),
            body=mask.data(request.body),
        )  # fmt: skip
        line = curl_line(shown, URL)
        assert [each for each in made(token) if each in line.lower()] == []
        script = f'curl() {{ for word; do echo "$word"; done; }}; {line}'
        known = {"TOKEN": token, "PATH": "/usr/bin:/bin"}
        run = subprocess.run(["sh", "-c", script], env=known, capture_output=True, text=True, check=True)
        printed = run.stdout.splitlines()
        assert f"Authorization: Bearer {sent}" in printed
        assert f"{URL}{request.target}" in printed
        assert sent in printed


@given(TOKENS, st.data())
def test_a_token_that_is_sent_in_pieces_is_hidden(token: str, data: st.DataObject) -> None:
    whole = f"GET / HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    parts = [whole[first:last] for first, last in itertools.pairwise([0, *cuts, len(whole)])]
    pieces = [each for part in parts for each in (part, 0.5)]
    mask = TokenMask.of({token: "$TOKEN"})
    shown = mask.pieces(pieces)
    assert [each for each in shown if isinstance(each, float)] == [0.5] * len(parts)
    joined = b"".join(each for each in shown if isinstance(each, bytes))
    assert joined == mask.data(whole) == b"GET / HTTP/1.1\r\nAuthorization: Bearer $TOKEN\r\n\r\n"


def test_a_short_token_is_hidden_in_credentials_only() -> None:
    mask = TokenMask.of({"tok": "$TOKEN", "to": "$OTHER_TOKEN"})
    for shown in ("Bearer {}", "bearer {}x", "Digest {}", "Bearer{}", "{}"):
        assert mask.text(shown.format("tok")) == shown.format("$TOKEN")
    assert mask.text("stock to") == "stock to"
    assert TokenMask.of({}).text("a") == "a"


def test_letters_of_any_case_are_hidden() -> None:
    assert TokenMask.of({"abCd": "$TOKEN"}).text("ABcD AbCd abCd xABc") == "$TOKEN_SWAPPED $TOKEN $TOKEN xABc"
