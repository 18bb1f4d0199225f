"""The clients of the example drivers over TLS, each in a process that trusts the test's certificate, or doesn't."""

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

from tests.drivers.demo_agent import ELSEWHERE
from tests.live.conftest import certificate  # noqa: F401 - a fixture

pytestmark = pytest.mark.live
DOCUMENT = b'{"a": 1}'
BEGIN = """
import sys
from asap_core import Unreachable
from asap_core.client import Client, RetryPolicy
client = Client("urn:asap:agent:caller", retry=RetryPolicy(retries=0))
"""
RUN = """
try:
    print(driver.run(client.get_document(sys.argv[1])).decode())
except Unreachable:
    print("unreachable")
"""
TWISTED = """
from twisted.internet import task
from twisted.internet.defer import ensureDeferred
from docs.drivers.twisted_driver import TwistedClient
running = lambda reactor: ensureDeferred(TwistedClient(client).run(client.get_document(sys.argv[1])))
try:
    task.react(lambda reactor: running(reactor).addCallbacks(
        lambda body: print(body.decode()),
        lambda failure: print("unreachable" if failure.check(Unreachable) else failure),
    ))
except SystemExit:
    pass
"""
CLIENTS = {
    "threads": f"{BEGIN}from docs.drivers.threads import Threads\ndriver = Threads(client)\n{RUN}",
    "gevent": f"{BEGIN}from docs.drivers.gevent_driver import Greenlets\ndriver = Greenlets(client)\n{RUN}",
    "lambda": f"{BEGIN}from docs.drivers.lambda_driver import Invocation\ndriver = Invocation(client)\n{RUN}",
    "twisted": BEGIN + TWISTED,
}


class Documents(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(DOCUMENT)))
        self.end_headers()
        self.wfile.write(DOCUMENT)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url(certificate: tuple[str, str]) -> Iterator[str]:  # noqa: F811 - the fixture
    server = ThreadingHTTPServer(("127.0.0.1", 0), Documents)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"https://localhost:{server.server_port}/document"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_accepts_only_certificates_that_are_trusted(name: str, url: str, certificate) -> None:  # noqa: F811
    if name in ("gevent", "twisted") and find_spec(name) is None:
        pytest.skip(f"{ELSEWHERE} {name} isn't installed here")
    for trusted, printed in ((certificate[0], DOCUMENT.decode()), (os.devnull, "unreachable")):
        environment = {**os.environ, "SSL_CERT_FILE": trusted}
        command = [sys.executable, "-c", CLIENTS[name], url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=environment)
        assert done.stdout == f"{printed}\n", done.stderr
