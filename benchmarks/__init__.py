"""Benchmarks: python -m benchmarks."""

from pathlib import Path

__all__ = ["ROOT", "reference_python"]

ROOT = Path(__file__).parent.parent


def reference_python() -> str | None:
    """The interpreter that has the reference implementation, if the interoperation tests have made it."""
    interpreter = ROOT / ".cache" / "interop" / "bin" / "python"
    return str(interpreter) if interpreter.exists() else None
