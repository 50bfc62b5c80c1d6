"""A short soak, with a daemon of another namespace that is killed among others: no error, no growth.

Before: scripts/lib/soak, as scripts/soak starts it. After: the exit code, and the figures as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from netns.serving import driver_program

WORDS = ("--seconds", "30", "--vms", "8", "--guests", "0", "--connections", "400", "--rate", "50", "--seed", "1")


@pytest.mark.timeout(400)
def test_thirty_seconds_of_mixed_load_and_kills_break_nothing_and_nothing_grows(short_dir: Path) -> None:
    driver_program("vsock-soak")
    figures = short_dir / "soak.json"
    done = subprocess.run(
        [sys.executable, "-m", "scripts.lib.soak", *WORDS, "--json", str(figures)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(figures.read_text())
    assert found["fault"] is None
    assert found["throughout"] >= 400
    assert min(found["kills"][what] for what in ("front-ends", "host applications", "daemons of other namespaces")) > 0
    # Somebody noticed the kills, and conversations went on all the same.
    assert found["broken"] + found["refused"] > 0
    assert found["finished"] > 500
