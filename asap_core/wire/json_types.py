"""The types of JSON values."""

from typing import Any

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A value read from JSON. Type checkers require that its type is tested before it's used."""

JsonObject = dict[str, Any]
"""A JSON object of which only its readers know the shape: a payload, metadata, claims that were checked.

Its values are `Any`: readers write `payload["city"]["name"]` without a test at each level, and writers pass any dict
with string keys.
"""
