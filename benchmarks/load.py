"""POST echo under load, ours on both backends against the reference under uvicorn, each on one core, wrk on the other.

wrk comes from Debian (`apt-get install wrk`). Every request has an envelope id of its own, made by wrk's script.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import ROOT, reference_python

__all__ = ["run"]

SECONDS, CONNECTIONS = 5, 16

SCRIPT = """
local number, salt = 0, math.random(1, 1e9)
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function request()
  number = number + 1
  return wrk.format(nil, "/asap", nil, string.format(
    '{"jsonrpc":"2.0","method":"asap.send","id":%d,"params":{"envelope":{"id":"e-%d-%d","asap_version":"0.1",' ..
    '"timestamp":"STAMP","sender":"urn:asap:agent:alice","recipient":"AGENT","payload_type":"task.request",' ..
    '"payload":{"conversation_id":"c","skill_id":"echo","input":{"text":"hello"}},' ..
    '"extensions":{"nonce":"n-%d-%d"}}}}', number, salt, number, salt, number))
end
function response(status, headers, body)
  if status ~= 200 or not body:find('"result":{"envelope"', 1, true) then refused = (refused or 0) + 1 end
end
function done(summary)
  io.write("refused " .. tostring(refused or 0) .. "\\n")
end
"""


@contextlib.contextmanager
def served(command: list[str], agent: str) -> Iterator[tuple[str, str]]:
    """Start a server on the first core; yields its base URL and its agent's id."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        ["taskset", "-c", "0", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert process.stdout is not None
    line = next(line for line in process.stdout if re.search(r"\d+\s*$", line))
    port = line.strip().rsplit(":", 1)[-1]
    try:
        yield f"http://127.0.0.1:{port}", agent
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def requests_per_second(url: str, agent: str) -> tuple[float, str]:
    """Load it from the second core."""
    stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(SCRIPT.replace("STAMP", stamp).replace("AGENT", agent))
        command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(script), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate is not None, output
    return float(rate[1]), output


def run() -> None:
    """Print the table."""
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        print("POST echo: needs wrk and taskset (apt-get install wrk util-linux)")
        return
    asap = [sys.executable, "-m", "asap_adapters.cli", "serve", "--port", "0", "--rate-limit", "off", "--backend"]
    contenders = {
        "ours, trio": ([*asap, "trio"], "urn:asap:agent:echo-agent"),
        "ours, asyncio": ([*asap, "asyncio"], "urn:asap:agent:echo-agent"),
    }
    python = reference_python()
    if python is not None:
        script = str(ROOT / "tests" / "interop" / "reference_server.py")
        contenders["reference, uvicorn"] = ([python, "-W", "ignore", script], "urn:asap:agent:reference-server")
    rates = {}
    for name, (command, agent) in contenders.items():
        with served(command, agent) as target:
            rates[name], output = requests_per_second(*target)
        if "refused 0" not in output:
            print(f"{name}: not all were accepted\n{output}")
    base = rates.get("reference, uvicorn")
    print("POST echo             requests/s   ratio")
    for name, rate in rates.items():
        print(f"{name:<20}  {rate:10.0f}   {'-' if base is None else f'{rate / base:.1f}x'}")


if __name__ == "__main__":
    run()
