"""`asap serve --oidc` beside a provider on a real port, which rotates its keys and dies."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from tests.live.test_cli import ALICE, asap, served

__all__ = ["served"]

pytestmark = pytest.mark.live

AUDIENCE = "urn:asap:agent:echo-agent"


@pytest.fixture
def provider() -> Any:
    """An identity provider on a free port; `keys` are what it publishes, `asked` which paths were asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/realm/.well-known/openid-configuration":
                body: Any = {"issuer": server.issuer, "jwks_uri": f"{server.issuer}/keys"}
            else:
                body = {"keys": [key.as_dict(private=False) for key in server.keys]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_arguments: Any) -> None:
            pass

    asked: Any = []
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.issuer, server.asked = f"http://127.0.0.1:{server.server_port}/realm", asked
    server.keys = [ECKey.generate_key("P-256", {"kid": "one"}, private=True)]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def token(provider: Any, key: Any = None, **changes: Any) -> str:
    now, key = int(time.time()), key or provider.keys[0]
    claims = {"iss": provider.issuer, "aud": AUDIENCE, "sub": "client-7", "exp": now + 300, "scope": "call", **changes}
    return jwt.encode({"alg": "ES256", "kid": key.kid}, claims, key)


def test_who_has_a_token_of_the_provider_is_let_in(served: Any, provider: Any) -> None:
    url, _ = served(
        "--oidc", provider.issuer, "--audience", AUDIENCE, "--scope", "call",
        "--subject", f"client-7={ALICE}", "--token", "static=urn:asap:agent:bob",
    )  # fmt: skip

    def send(text: Any, sender: Any = ALICE) -> Any:
        done = asap("send", url, "--skill", "echo", "--input", "{}", "--token", text, "--sender", sender)
        return done.returncode, done.stdout + done.stderr

    assert send(token(provider)) == (0, 'completed: {"echoed": {}}\n')
    assert send("static", "urn:asap:agent:bob")[0] == 0
    assert "sender" in send(token(provider), "urn:asap:agent:mallory")[1].lower()
    for wrong in ({"aud": "x"}, {"sub": "client-8"}, {"exp": 1}, {"iss": f"{provider.issuer}/"}, {"scope": "other"}):
        assert send(token(provider, **wrong))[0] == 1
    assert send(token(provider, ECKey.generate_key("P-256", {"kid": "one"}, private=True)))[0] == 1
    assert provider.asked == ["/realm/.well-known/openid-configuration", "/realm/keys"]
    provider.shutdown()
    assert send(token(provider))[0] == 0
