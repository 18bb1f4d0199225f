"""An agent that was written in an afternoon. It answers honest callers well, and breaks most laws: don't use it.

    python docs/examples/sloppy_agent.py 8000
    asap conform http://127.0.0.1:8000 --token secret --as urn:asap:agent:alice

Comments say what is wrong with it. `asap conform` finds that without them.
"""

import json
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

URN = "urn:asap:agent:sloppy"
TOKENS = {"secret": "urn:asap:agent:alice", "secret2": "urn:asap:agent:bob"}
MANIFEST = {
    "id": URN, "name": "Sloppy", "version": "1.0.0", "description": "", "auth": {"schemes": ["bearer"]},
    "capabilities": {"asap_version": "0.1", "skills": [{"id": "echo", "description": "echoes its input"}]},
    "endpoints": {"asap": "http://127.0.0.1:8000/asap"},
}  # fmt: skip
seen_ids: set[str] = set()  # grows for ever; and an id is easily replaced, while the nonce isn't looked at


class SloppyHandler(BaseHTTPRequestHandler):
    """Answers the manifest, health and calls. http.server reads the heads, and forgives much."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send a document: no ETag, so that nobody can revalidate; and no HEAD at all."""
        if self.path.endswith("health"):
            self.reply(200, {"status": "ok", "agent_id": URN})  # not one of the two words; fields are missing
        else:
            self.reply(200, MANIFEST)  # at any path

    def do_POST(self) -> None:
        """Answer a call. Whatever goes wrong is an internal error, with the exception's text in it."""
        body = self.rfile.read(int(self.headers["Content-Length"]))  # of any size; and chunks aren't read
        try:
            call = json.loads(body)  # duplicate keys, NaN, any encoding
            self.reply(200, {"jsonrpc": "2.0", "id": call["id"], "result": {"envelope": self.answer(call)}})
        except Exception as error:  # the token may be in it
            failure = {"code": -32603, "message": f"{error!r} in {body.decode(errors='replace')}"}
            self.reply(200, {"jsonrpc": "2.0", "id": None, "error": failure})

    def answer(self, call: dict[str, dict[str, dict[str, str]]]) -> dict[str, object]:
        """Return the reply to an envelope. The method, the recipient and the date aren't looked at."""
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if token not in TOKENS:  # but whose it is doesn't matter: any token speaks for any sender
            raise PermissionError(f"unknown token {token}")
        envelope = call["params"]["envelope"]
        if envelope["id"] in seen_ids:
            raise ValueError("replayed")
        seen_ids.add(envelope["id"])  # before anything else was checked: a refused call can't be repaired
        payload = {"task_id": uuid4().hex, "status": "completed", "result": envelope["payload"]["input"]}  # type: ignore[index]
        return {
            "id": uuid4().hex, "asap_version": "0.1", "timestamp": datetime.now(UTC).isoformat(), "sender": URN,
            "recipient": envelope["sender"], "payload_type": "task.response", "payload": payload,
        }  # fmt: skip  # and no correlation_id

    def reply(self, status: int, document: object) -> None:
        """Send a document as JSON."""
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), SloppyHandler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
