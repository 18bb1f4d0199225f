"""`asap serve --oidc` beside a provider on a real port, which rotates its keys and dies."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, import_key

from tests.live.command import ALICE, asap, backend, served

__all__ = ["backend", "served"]

pytestmark = pytest.mark.live

SECRET = "s3cret-of-client-7"
AUDIENCE = "urn:asap:agent:echo-agent"


@pytest.fixture
def provider():
    """An identity provider on a free port; `keys` are what it publishes, `asked` which paths were asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/realm/.well-known/openid-configuration":
                body: Any = {
                    "issuer": server.issuer,
                    "jwks_uri": f"{server.issuer}/keys",
                    "token_endpoint": f"{server.issuer}/token",
                }
            else:
                body = {"keys": [key.as_dict(private=False) for key in server.keys]}
            self.answer(200, body)

        def do_POST(self) -> None:
            asked.append(self.path)
            text = self.rfile.read(int(self.headers["content-length"])).decode()
            form = {name: value for name, (value,) in parse_qs(text).items()}
            if not known(server, form, self.headers.get("authorization", "")):
                self.answer(401, {"error": "invalid_client", "error_description": text})
                return
            bound, kind = {}, "Bearer"
            if "dpop" in self.headers:
                head = json.loads(base64.urlsafe_b64decode(self.headers["dpop"].split(".")[0] + "=="))
                bound, kind = {"cnf": {"jkt": import_key(head["jwk"]).thumbprint()}}, "DPoP"
            if self.path.endswith("/introspect"):
                self.answer(200, server.knows.get(form["token"], {"active": False}))
                return
            made = token(server, aud=form.get("audience", AUDIENCE), scope=form.get("scope", ""), **bound)
            self.answer(200, {"access_token": made, "token_type": kind, "expires_in": 300})

        def answer(self, status: int, body) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_arguments) -> None:
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


def known(provider, form, authorization: str) -> bool:
    """Whether this is client-7, by its secret in either place, or by the key that it registered."""
    if "client_assertion" not in form:
        in_form = (form.get("client_id"), form.get("client_secret")) == ("client-7", SECRET)
        return in_form or authorization == "Basic " + base64.b64encode(f"client-7:{SECRET}".encode()).decode()
    read = jwt.decode(form["client_assertion"], provider.client_key, algorithms=["ES256"])
    claims, now = read.claims, time.time()
    return bool(
        claims["iss"] == claims["sub"] == form["client_id"] == "client-7"
        and claims["aud"] == provider.issuer
        and now - 5 <= claims["iat"] <= now < claims["exp"] <= now + 60
    )


def token(provider, key=None, **changes) -> str:
    now, key = int(time.time()), key or provider.keys[0]
    claims = {"iss": provider.issuer, "aud": AUDIENCE, "sub": "client-7", "exp": now + 300, "scope": "call", **changes}
    return jwt.encode({"alg": "ES256", "kid": key.kid}, claims, key)


def test_a_caller_with_a_token_of_the_provider_is_accepted(served, provider) -> None:
    url, _ = served(
        "--oidc", provider.issuer, "--audience", AUDIENCE, "--scope", "call",
        "--subject", f"client-7={ALICE}", "--token", "static=urn:asap:agent:bob",
    )  # fmt: skip

    def send(text, sender=ALICE):
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


class TestAClientOfTheProvider:
    """`asap token` and `asap send --client-id`, with the ways for a client to prove itself."""

    @pytest.fixture
    def files(self, tmp_path, provider):
        (tmp_path / "secret").write_text(f"{SECRET}\n")
        key = ECKey.generate_key("P-256", private=True)
        (tmp_path / "key.pem").write_bytes(key.as_pem(private=True))
        provider.client_key = key
        return tmp_path

    @pytest.fixture(params=["basic", "key"])
    def proof(self, request, files):
        if request.param == "key":
            return ["--client-key", str(files / "key.pem")]
        return ["--client-secret-file", str(files / "secret"), "--client-auth", request.param]

    def test_a_client_gets_tokens_and_is_accepted_with_them(self, served, provider, proof) -> None:
        who = ["--issuer", provider.issuer, "--client-id", "client-7", "--scope", "call", *proof]
        got = asap("token", *who, "--json")
        assert got.returncode == 0, got.stderr
        answer = json.loads(got.stdout)
        assert 290 <= answer["expires_in"] <= 300
        subject = f"client-7={ALICE}"
        url, _ = served("--oidc", provider.issuer, "--audience", AUDIENCE, "--scope", "call", "--subject", subject)
        send = ["send", url, "--skill", "echo", "--sender", ALICE]
        done = asap(*send, *who)
        assert (done.returncode, done.stdout) == (0, 'completed: {"echoed": {}}\n'), done.stderr
        done = asap(*send, *who, "--audience", "urn:asap:agent:x")
        assert "Invalid authentication token" in done.stderr

    def test_a_client_gets_an_error_that_repeats_no_secret(self, provider, files) -> None:
        (files / "wrong").write_text("another-s3cret")
        who = ["--issuer", provider.issuer, "--client-id", "client-7"]
        done = asap("token", *who, "--client-secret-file", str(files / "wrong"))
        assert done.returncode == 1
        assert done.stderr == (
            f"asap: no access token from {provider.issuer}/token: "
            "unknown client, or wrong secret or key (invalid_client)\n"
        )
        provider.issuer += "/"
        done = asap("token", *who, "--client-secret-file", str(files / "secret"))
        assert (done.returncode, "the issuer that was asked" in done.stderr) == (1, True)
        (files / "binary").write_bytes(b"\xff\x00")
        for options, told in (
            ([], "needs --client-secret-file or --client-key"),
            (["--client-secret-file", str(files / "none")], "No such file"),
            (["--client-secret-file", str(files / "binary")], "one line of visible ASCII"),
            (["--client-key", str(files / "secret")], "expected a private key in PEM"),
            (["--client-secret-file", str(files / "secret"), "--scope", "a b"], "expected one scope"),
        ):
            done = asap("token", *who, *options)
            assert done.returncode in (1, 2)
            assert told in done.stderr
            assert "s3cret" not in done.stderr
            assert done.stderr.count("\n") == 1


def test_opaque_tokens_are_introspected_at_the_provider(served, provider, tmp_path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    provider.knows = {
        "opaque": {"active": True, "sub": "client-8", "aud": AUDIENCE, "scope": "call"},
        "others": {"active": True, "sub": "client-8", "aud": "urn:asap:agent:x", "scope": "call"},
        "small": {"active": True, "sub": "client-8", "aud": AUDIENCE},
    }
    url, _ = served(
        "--introspect", f"{provider.issuer}/introspect", "--client-id", "client-7",
        "--client-secret-file", str(tmp_path / "secret"), "--audience", AUDIENCE, "--scope", "call",
        "--subject", f"client-8={ALICE}", "--token", "static=urn:asap:agent:bob",
    )  # fmt: skip

    def send(text, sender=ALICE):
        done = asap("send", url, "--skill", "echo", "--input", "{}", "--token", text, "--sender", sender)
        return done.returncode, done.stdout + done.stderr

    assert send("opaque") == (0, 'completed: {"echoed": {}}\n')
    assert send("opaque")[0] == 0
    assert send("static", "urn:asap:agent:bob")[0] == 0
    assert "Invalid authentication token" in send("others")[1]
    assert "does not allow" in send("small")[1]
    assert "Invalid authentication token" in send("guess")[1]
    assert provider.asked == ["/realm/introspect"] * 4
