"""The method knows nothing of the processes that run it."""

import os
import subprocess
import sys
from pathlib import Path

import rlhf

ROOT = Path(rlhf.__file__).parents[1]
IMPORT_ALL = """
import importlib, pkgutil, sys
import rlhf
names = [m.name for m in pkgutil.walk_packages(rlhf.__path__, "rlhf.")]
names = [name for name in names if not name.endswith("__main__") and ".commands.cluster" not in name]
for name in names:
    importlib.import_module(name)
found = sorted({m.partition(".")[0] for m in sys.modules} & {"ray", "actors", "serve"})
print(len(names), found or "nothing")
"""


def test_no_module_of_the_method_imports_ray_actors_or_serve() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, _, found = done.stdout.strip().splitlines()[-1].partition(" ")
    files = [p for p in (ROOT / "rlhf").rglob("*.py") if p.name not in ("__init__.py", "__main__.py")]
    # `rlhf check-cluster` compares cluster files with what actors and servers ask for.
    files = [p for p in files if "/commands/cluster" not in str(p)]
    assert int(count) >= len(files), "every file was imported"
    assert found == "nothing"
