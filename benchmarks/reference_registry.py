"""Run by the reference implementation's interpreter: how long a registry takes to be read, and an agent to be found."""

import json
import sys
import time
from pathlib import Path

__all__: list[str] = []

from asap.discovery.registry import LiteRegistry, find_by_id, find_by_skill  # type: ignore[import-not-found]

if __name__ == "__main__":
    data, wanted, skill = Path(sys.argv[1]).read_bytes(), sys.argv[2], sys.argv[3]
    began = time.perf_counter()
    registry = LiteRegistry.model_validate(json.loads(data))
    read = time.perf_counter() - began
    began = time.perf_counter()
    assert find_by_id(registry, wanted) is not None
    by_id = time.perf_counter() - began
    began = time.perf_counter()
    assert len(find_by_skill(registry, skill)) == 1
    print(json.dumps([read, by_id, time.perf_counter() - began]))
