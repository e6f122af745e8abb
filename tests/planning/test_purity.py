"""The planner and the configuration work where torch is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import chinchilla

SCRIPT = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps("torch" in sys.modules))
"""


def test_planning_and_config_import_no_torch() -> None:
    root = Path(chinchilla.__file__).parent
    files = [path for room in ("planning", "config") for path in sorted((root / room).glob("*.py"))]
    names = [f"chinchilla.{path.parent.name}.{path.stem}" for path in files if path.stem != "__init__"]
    assert "chinchilla.planning.count" in names
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(names)], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) is False
