"""The mutants that are known to survive, with the reason: the table in docs/mutation.md, read back."""

import re
from pathlib import Path

__all__ = ["known_survivors"]

# A pipe in code is written as \|.
ROW = re.compile(r"\| (\w+) \| `(.*?)` \| `(.*?)` \| `(.*?)` \| (.+) \|")
AT_IMPORT = "(module)"


def known_survivors(root: Path) -> dict[tuple[str, str, str, str], str]:
    """Why each survives, by its identity."""
    found = {}
    for line in (root / "docs" / "mutation.md").read_text("utf-8").splitlines():
        if row := ROW.fullmatch(line.replace(r"\|", "\0")):
            module, function, was, became, why = (cell.replace("\0", "|") for cell in row.groups())
            found[module, "" if function == AT_IMPORT else function, was, became] = why
    return found
