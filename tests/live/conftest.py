"""Real sockets, real mDNS, real threads, on the real clock."""

import functools
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest


@pytest.fixture(scope="session", autouse=True)
def _authorities_are_read_once() -> Iterator[None]:
    """Let clients share what the system's certificates are read into: reading takes 30 ms, and there are hundreds."""
    create = httpx.create_ssl_context

    @functools.cache
    def shared(trust_env: bool, *_files: str | None) -> ssl.SSLContext:
        return create(trust_env=trust_env)

    def created(verify: Any = True, *, trust_env: bool = True, **options: Any) -> ssl.SSLContext:
        if verify is not True or options:
            return create(verify=verify, trust_env=trust_env, **options)
        return shared(trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "create_ssl_context", created)
        yield


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> tuple[str, str]:
    """The files of a certificate for this machine, and of its key."""
    openssl, where = shutil.which("openssl"), tmp_path_factory.mktemp("certificate")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, isn't installed")
    files = str(where / "cert.pem"), str(where / "key.pem")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", files[1], "-out", files[0], "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return files
