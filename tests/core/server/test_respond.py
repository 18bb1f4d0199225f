"""The response itself, also to an invalid request."""

import json

from asap_core.server.exchange import refuse_head


def test_an_unreadable_request_gets_a_response_too() -> None:
    response = refuse_head(431, "Expected less")
    assert (response.status, response.close) == (431, True)
    assert json.loads(response.body) == {"detail": "Expected less"}
    assert dict(response.headers)[b"content-length"] == b"%d" % len(response.body)
    assert dict(response.headers)[b"asap-version"] == b"2.2"
