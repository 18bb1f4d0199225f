"""Real sockets, real mDNS, real threads, on the real clock."""

import shutil
import subprocess

import pytest


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
