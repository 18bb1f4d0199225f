"""`--token` and `--token-file`: whom callers' tokens stand for. No error here repeats a token."""

from collections.abc import Iterable
from pathlib import Path

from asap_adapters.cli.output import UserError
from asap_core.auth.principal import TokenTable


def read_tokens(given: Iterable[str], file: Path | None) -> TokenTable:
    """Read TOKEN=URN pairs, those given and those in `file`. Raises UserError that names the place, or OSError."""
    pairs = [("--token", pair) for pair in given]
    if file is not None:
        pairs += _lines(file)
    table: dict[str, str] = {}
    for where, pair in pairs:
        # The last "=": base64 ends in "=", a URN has none.
        token, separator, agent = pair.rpartition("=")
        if not separator:
            raise UserError(f"{where}: expected TOKEN=URN", usage=True)
        if token in table:
            raise UserError(f"{where}: expected every token once", usage=True)
        _check(where, token, agent)
        table[token] = agent
    return TokenTable(table)


def _check(where: str, token: str, agent: str) -> None:
    try:
        TokenTable({token: agent})
    except ValueError as error:
        raise UserError(f"{where}: {error}", usage=True) from None


def _lines(file: Path) -> list[tuple[str, str]]:
    """The lines of a token file with their places; empty ones, and those that begin with `#`, don't count."""
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file}: expected TOKEN=URN lines in UTF-8") from None
    numbered = [(f"{file}, line {number}", line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(where, line) for where, line in numbered if line and not line.startswith("#")]
    if not lines:
        # Taken for "no tokens" it would open the agent to everyone.
        raise UserError(f"{file}: expected at least one TOKEN=URN line")
    return lines
