"""Coverage-guided fuzzing of the readers and state machines: `python -m tests.fuzz TARGET SECONDS`.

Atheris runs the target, and keeps in the corpus each input that reaches something new. The first input that breaks the
invariant ends the search; it's kept too, and `--input FILE` runs it again.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
CORPUS: Final = ROOT / ".cache" / "fuzz"
DONE: Final = re.compile(r"DONE +cov: (\d+) ft: (\d+) corp: (\d+)/")
RUNS: Final = re.compile(r"Done (\d+) runs in (\d+) second")
FOUND: Final = 77
"""The status that Atheris exits with after an exception."""


PARTS: Final = {
    "head": ["asap_core.http", "h11"],
    "json": ["asap_core.wire.json"],
    "codec": ["asap_core.wire"],
    "exchange": ["asap_core.server", "asap_core.http.messages", "asap_core.wire"],
    "freshness": ["asap_core.http", "asap_core.wire.rules"],
    "dnssd": ["asap_core.mdns", "asap_core.net"],
    "jwt": ["asap_core.auth", "asap_core.wire.json"],
    "client": ["asap_core.client", "asap_core.flights"],
}
"""The targets, each with the modules whose coverage guides its search."""


def quoted(word: bytes) -> str:
    """A line of libFuzzer's dictionary."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


def search(name: str, place: Path, arguments: list[str], *, planted: bool) -> None:
    """Run Atheris in this process, beginning with the target's seeds; it doesn't return."""
    import atheris

    with atheris.instrument_imports(include=PARTS[name]):
        target = import_module("tests.fuzz.targets").TARGETS[name]
    seeds, words = place / "seeds", place / "words"
    seeds.mkdir()
    for number, data in enumerate(target.seeds):
        (seeds / str(number)).write_bytes(data)
    words.write_text("".join(map(quoted, target.words)), "ascii")
    if planted:
        target.plant()
    atheris.Setup(["fuzz", *arguments, *([f"-dict={words}"] if target.words else []), str(seeds)], target.check)
    atheris.Fuzz()


def fuzz(name: str, seconds: float, *, corpus: Path, seed: int, planted: bool) -> bool:
    """Search in another process, and print what came of it. Returns whether the invariant held."""
    kept = corpus / name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        command = [
            sys.executable, "-m", "tests.fuzz", name, "0", *(["--planted"] if planted else []), "--engine", place,
            f"-max_total_time={seconds:.0f}", f"-seed={seed}", "-timeout=20",
            f"-artifact_prefix={corpus / name}-found-", str(kept),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    told = done.stderr + done.stdout
    ended, runs = DONE.search(told), RUNS.search(told)
    if done.returncode != 0 or ended is None or runs is None:
        print(told[-6_000:])
        print(f"{name}: {'a finding' if done.returncode == FOUND else f'ended with {done.returncode}'}, see above")
        return False
    edges, features, size = ended.groups()
    print(f"{name}: {runs[1]} inputs in {runs[2]} s, {edges} edges, {features} features, {size} kept; no finding")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Search for inputs that break a law.")
    parser.add_argument("target", choices=[*PARTS, "all"])
    parser.add_argument("seconds", type=float, help="for each target")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where inputs are kept (default: .cache/fuzz)")
    parser.add_argument("--seed", type=int, default=0, help="0 chooses one")
    parser.add_argument("--planted", action="store_true", help="plant the target's defect first")
    parser.add_argument("--input", type=Path, help="run this input only")
    parser.add_argument("--engine", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.engine is not None:
        search(given.target, Path(given.engine[0]), given.engine[1:], planted=given.planted)
    if given.input is not None:
        import_module("tests.fuzz.targets").TARGETS[given.target].check(given.input.read_bytes())
        return 0
    chosen = list(PARTS) if given.target == "all" else [given.target]
    held = [
        fuzz(name, given.seconds, corpus=given.corpus.resolve(), seed=given.seed, planted=given.planted)
        for name in chosen
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
