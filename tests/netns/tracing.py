"""System calls that fail, by strace.

Before: test_system_calls.py and test_system_starts.py say which, and how. After: strace, as an ordinary process.
Rule:   what failed is in the trace; a test looks there whether anything did.
"""

from __future__ import annotations

import contextlib
import platform
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import lacking, tool
from netns.serving import LIMIT

# What unlink, rename and mkdir are called where only unlinkat and so on are calls of the system.
AT = "" if platform.machine() == "x86_64" else "at"


@pytest.fixture(scope="session")
def strace() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        words = [tool("strace"), "-o", "/dev/null", "-p", str(other.pid)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = process.stderr.readline()
            process.terminate()
        other.kill()
    if "attached" not in said:
        lacking(f"strace that may look into other processes ({said.strip()})")


def inject(calls: str, error: str) -> list[str]:
    """The words that make these calls fail: names, each perhaps with `:WHEN` as strace has it, with commas between."""
    found = [call.partition(":") for call in calls.split(",")]
    words = ["-e", "trace=" + ",".join(name for name, _, _ in found)]
    for name, _, when in found:
        words += ["-e", f"inject={name}:error={error}" + (f":when={when}" if when else "")]
    return words


def failed(trace: Path) -> list[str]:
    """The calls that failed, once for each time."""
    return re.findall(r"^(?:\d+ +)?(\w+)\(.*\(INJECTED\)$", trace.read_text(), re.MULTILINE)


@contextlib.contextmanager
def failing(thread: int, calls: str, error: str, trace: Path) -> Iterator[Callable[[], list[str]]]:
    """Until the end, these calls of a thread fail; which have by now."""
    words = [tool("strace"), "-o", str(trace), *inject(calls, error), "-p", str(thread)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "attached" in said, said
        try:
            yield lambda: failed(trace)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT)
