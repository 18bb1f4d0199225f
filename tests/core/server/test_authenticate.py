"""Authentication: the state `Authenticate`, the challenge, and the rule about the sender."""

import json

import pytest

from asap_core import (
    Refusal,
    Request,
)
from asap_core.refusals import BUSY
from tests.builders import ALICE, call
from tests.core.server.exchanges import head, outcome, post, serve


class TestCredentials:
    def test_a_request_without_a_credential_is_challenged(self) -> None:
        response = serve(auth=True).open(head()).response
        assert (response.status, response.close) == (401, True)
        assert dict(response.headers)[b"www-authenticate"] == b'Bearer realm="asap"'
        assert json.loads(response.body)["error"]["data"]["status_code"] == 401

    @pytest.mark.parametrize("value", ["Bearer", "Bearer a b", "Bearer " + "x" * 9000, "Bearer é"])
    def test_a_credential_that_cannot_be_read_is_challenged(self, value) -> None:
        response = serve(auth=True).open(head(authorization=value)).response
        assert (response.status, b'error="invalid_request"' in dict(response.headers)[b"www-authenticate"]) == (
            401,
            True,
        )

    def test_a_refused_credential_is_challenged(self) -> None:
        response = serve(auth=True).open(head(authorization="bearer x")).refused().response
        assert (response.status, b'error="invalid_token"' in dict(response.headers)[b"www-authenticate"]) == (401, True)

    def test_a_credential_that_cannot_be_checked_is_answered_503_with_retry_after(self) -> None:
        response = serve(auth=True).open(head(authorization="Bearer x")).unavailable().response
        assert (response.status, dict(response.headers)[b"retry-after"], response.close) == (503, b"1", True)

    def test_a_credential_of_another_scheme_is_challenged(self) -> None:
        response = serve(auth=True).open(head(authorization="Basic eDp5")).response
        assert dict(response.headers)[b"www-authenticate"] == b'Bearer realm="asap"'

    def test_two_authorization_headers_are_refused(self) -> None:
        request = Request(method="POST", target="/asap", headers=((b"authorization", b"Bearer a"),) * 2, peer="x")
        assert serve(auth=True).open(request).response.status == 401

    def test_only_an_authenticated_caller_is_bound_to_its_name(self) -> None:
        forged = call(envelope_changes={"sender": "urn:asap:agent:mallory"})
        response = post(serve(auth=True), forged, authorization="Bearer x")
        assert (response.status, outcome(response)) == (403, "asap:auth/sender_mismatch")
        assert outcome(post(serve(), forged)) == "ok"

    @pytest.mark.parametrize(
        ("scopes", "code"),
        [({"message.send": "write"}, "asap:auth/insufficient_scope"), ({"task.request": "write"}, "ok")],
    )
    def test_a_payload_type_without_skills_may_require_scopes_too(self, scopes, code) -> None:
        payload = {"task_id": "t", "message_id": "m", "sender": ALICE, "role": "user", "parts": []}
        message = call(envelope_changes={"payload_type": "message.send", "payload": payload})
        agent = serve(auth=True, payload_types=["task.request", "message.send"], scopes=scopes)
        assert outcome(post(agent, message, authorization="Bearer x")) == code

    def test_the_profile_reference_refuses_with_status_200(self) -> None:
        forged = call(envelope_changes={"sender": "urn:asap:agent:mallory"})
        response = post(serve(auth=True, plain_refusals=True), forged, authorization="Bearer x")
        assert (response.status, json.loads(response.body)["error"]["code"]) == (200, -32602)
        assert serve(auth=True, plain_refusals=True).open(head()).response.status == 200
        busy = post(serve(plain_refusals=True), call(), answer=lambda state: state.turned_away(Refusal(kind=BUSY)))
        assert busy.status == 503

    def test_an_alias_is_accepted_as_the_recipient(self) -> None:
        other = call(envelope_changes={"recipient": "urn:asap:agent:other"})
        aliased = serve(aliases=["urn:asap:agent:other"])
        assert outcome(post(aliased, other)) == "ok"
        assert aliased.addresses == {aliased.manifest.id, "urn:asap:agent:other"}
