"""`vhostvsock listen` as a command: how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import LIMIT, ONE_VM, Start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_for_each_connection_ends_in_order_by_a_signal(
    start: Start, short_dir: Path, number: signal.Signals
) -> None:
    env = {"VHOSTVSOCK_RUNTIME_DIR": str(short_dir / "run")}
    start(*ONE_VM, "--no-parent", env=env).wait_ready()
    words = [sys.executable, "-m", "vhostvsock", "listen", "-v", "5000", "--exec", "cat"]
    with subprocess.Popen(words, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "listening on port 5000\n"
        process.send_signal(number)
        assert process.wait(LIMIT) == 0
        assert process.stderr.read() == ""
