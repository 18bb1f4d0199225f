"""Glewlwyd, an identity provider by others, on a free port, set up by its own administration interface."""

import gzip
import re
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from attrs import frozen
from joserfc.jwk import ECKey, RSAKey

PROGRAM = shutil.which("glewlwyd")
SETTINGS = Path("/etc/glewlwyd/glewlwyd.conf")
TABLES = Path("/usr/share/doc/glewlwyd/database/init.sqlite3.sql.gz")
MISSING = "glewlwyd isn't installed: apt-get install glewlwyd"

CLIENT, SECRET = "client-7", "s3cret-of-client-7"
MINE, OTHERS = "https://agent.example/", "https://other.example/"
SECONDS = 20.0


def is_there() -> bool:
    """Whether it can be run: Debian's package, with what it brings."""
    return PROGRAM is not None and SETTINGS.exists() and TABLES.exists()


@frozen
class Glewlwyd:
    """It, running."""

    base: str
    directory: Path
    admin: httpx.Client

    @property
    def issuer(self) -> str:
        """Its issuer: one of its plugins."""
        return f"{self.base}/api/oidc"

    def publish(self, *keys: RSAKey) -> None:
        """Sign with the first of these from now on, and publish all of them."""
        parameters = _parameters(self.issuer, keys)
        plugin = {"module": "oidc", "name": "oidc", "display_name": "OIDC", "parameters": parameters}
        if self.admin.get("/mod/plugin/oidc").is_success:
            answer = self.admin.put("/mod/plugin/oidc", json=plugin)
        else:
            answer = self.admin.post("/mod/plugin/", json=plugin)
        assert answer.is_success, answer.text

    def token(self, resource: str = MINE, **more) -> str:
        """A token for this client, as it gives them."""
        form = {"grant_type": "client_credentials", "scope": "call", "resource": resource, **more}
        answer = httpx.post(f"{self.issuer}/token", data=form, auth=(CLIENT, SECRET))
        return str(answer.json()["access_token"])

    def revoke(self, token: str) -> None:
        """Take a token back (RFC 7009)."""
        answer = httpx.post(f"{self.issuer}/revoke", data={"token": token}, auth=(CLIENT, SECRET))
        assert answer.is_success, answer.text


def _parameters(issuer: str, keys: tuple[RSAKey, ...]) -> dict[str, Any]:
    set_of_keys = {"keys": [{**key.as_dict(private=True), "alg": "RS256"} for key in keys]}
    return {
        "iss": issuer,
        "jwks-private": httpx.Response(200, json=set_of_keys).text,
        "jwks-show": True,
        "allow-non-oidc": True,
        "auth-type-client-enabled": True,
        "access-token-duration": 3600,
        "refresh-token-duration": 3600,
        "code-duration": 600,
        "refresh-token-rolling": False,
        "introspection-revocation-allowed": True,
        "introspection-revocation-allow-target-client": True,
        "introspection-revocation-auth-scope": [],
        "oauth-dpop-allowed": True,
        "oauth-dpop-iat-duration": 60,
        "oauth-dpop-iat-gap-duration": 10,
        "resource-allowed": True,
        "resource-scope": {"call": [MINE, OTHERS]},
        "resource-client-property": "",
        "resource-scope-and-client-property": False,
        "client-pubkey-parameter": "pubkey",
        "client-jwks-parameter": "jwks",
        "request-parameter-allow": True,
        "request-parameter-ietf-strict": True,
        "request-maximum-exp": 3600,
        "claims": [],
    }


@contextmanager
def glewlwyd(directory: Path, client_key: ECKey) -> Iterator[Glewlwyd]:
    """Run it, with one client, which has a secret and a key, and one scope."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://localhost:{port}"
    _set_up(directory, base, port)
    with (directory / "log").open("w") as log:
        command = [str(PROGRAM), "-c", str(directory / "glewlwyd.conf")]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"{base}/api") as admin:
            _wait_for(admin)
            made = Glewlwyd(base, directory, admin)
            made.publish(RSAKey.generate_key(2048, {"kid": "first"}, private=True))
            _add_client(admin, client_key)
            yield made
    finally:
        process.terminate()
        process.wait()


def _set_up(directory: Path, base: str, port: int) -> None:
    with sqlite3.connect(directory / "glewlwyd.db") as database:
        database.executescript(gzip.decompress(TABLES.read_bytes()).decode())
    database.close()
    text = SETTINGS.read_text()
    for pattern, replacement in (
        (r"@include.*", f'database = {{ type = "sqlite3"; path = "{directory}/glewlwyd.db"; }};'),
        (r"port\s*=\s*4593", f'port={port}\nbind_address="127.0.0.1"'),
        (r"external_url\s*=.*", f'external_url="{base}"'),
        (r"log_mode\s*=.*", 'log_mode="console"'),
    ):
        text = re.sub(pattern, lambda _, new=replacement: new, text)  # type: ignore[misc]
    (directory / "glewlwyd.conf").write_text(text)


def _wait_for(admin: httpx.Client) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            answer = admin.post("/auth/", json={"username": "admin", "password": "password"})
        except httpx.ConnectError:
            assert time.monotonic() < deadline, "it doesn't start"
            time.sleep(0.05)
        else:
            assert answer.is_success, answer.text
            return


def _add_client(admin: httpx.Client, key: ECKey) -> None:
    assert admin.post("/scope/", json={"name": "call", "display_name": "call", "password_required": False}).is_success
    client = {
        "client_id": CLIENT,
        "name": "A client",
        "password": SECRET,
        "confidential": True,
        "enabled": True,
        "scope": ["call"],
        "authorization_type": ["client_credentials"],
        "token_endpoint_auth_method": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
        "token_endpoint_signing_alg": "ES256",
        "pubkey": key.as_pem(private=False).decode(),
    }
    answer = admin.post("/client/", json=client)
    assert answer.is_success, answer.text
