"""The example in docs/namespaces.md, command by command, with its output.

Before: the block of commands there. After: a shell runs them in order, in a directory with vms.toml and the program vm.
Rules:  - what a command prints is what is written there, but for times, numbers of more than two digits, the width of
          columns, and the order of lines that come from several programs at once.
        - the namespaces have other names than written, so that nobody else's are touched.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import ROOT, tool
from harness.waiting import LIMIT, Lines

NAMES = ("red", "blue", "green")
DIRECTORY = "/srv/vms"  # as it is written
_DONE = "command-done"
_VM = f'#!/bin/sh\nPYTHONPATH={ROOT}:{ROOT}/tests exec {sys.executable} -m vm.example_vm "$@"\n'


@dataclass
class Step:
    command: str
    output: list[str] = field(default_factory=list)


def written() -> list[Step]:
    """The commands of the page, each with the output that is written behind it."""
    [block] = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "namespaces.md").read_text(), re.DOTALL)
    steps: list[Step] = []
    for line in block.splitlines():
        if line.startswith("# "):
            steps.append(Step(line[2:]))
        elif line:
            steps[-1].output.append(line)
    return steps


class Shell:
    """A shell as it runs in a terminal: all output in one stream."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VHOSTVSOCK_RUNTIME_DIR": str(directory / "run"),
        }
        self._popen = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines = Lines("the shell")
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stream:
            for line in stream:
                self._lines.add(line.rstrip("\n"))
        self._lines.end()

    def run(self, command: str, expected: int) -> list[str]:
        """Run a command; its output, once it has ended or, in the background, said so many lines."""
        before = self._lines.count()
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{command}\necho {_DONE}\n")
        self._popen.stdin.flush()
        self._lines.wait_line(_DONE, since=before)
        while self._lines.count() < before + 1 + expected:
            # Any line will do; the one that does not come is the error.
            self._lines.wait_line("", LIMIT, since=self._lines.count())
        return [line for line in self._lines.seen[before:] if line != _DONE]

    def close(self) -> None:
        # Its session is all that it started.
        os.killpg(self._popen.pid, signal.SIGTERM)
        try:
            self._popen.wait(LIMIT)
            self._reader.join(LIMIT)
        finally:
            if self._reader.is_alive():
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._reader.join(LIMIT)
            if self._popen.stdin is not None:
                self._popen.stdin.close()


def plain(lines: list[str]) -> list[str]:
    """What is to be the same each time."""
    made = []
    for line in lines:
        line = re.sub(r"^\d{4}-\d\d-\d\d [\d:.]+ ", "TIME ", line)
        made.append(re.sub(r" {2,}", " ", re.sub(r"\d{3,}", "N", line)))
    return sorted(made)


@pytest.fixture
def names() -> Iterator[dict[str, str]]:
    made = {name: f"vvt{os.getpid()}-{name}" for name in NAMES}
    try:
        yield made
    finally:
        for name in made.values():
            if os.path.lexists(f"/run/netns/{name}"):
                subprocess.run([tool("ip"), "netns", "del", name], check=True)


def test_the_example_of_the_documentation(namespaces_can_be_made: None, short_dir: Path, names: dict[str, str]) -> None:
    config = "parent = false\n"
    for name in names.values():
        (short_dir / name).mkdir()
        config += f'[[vm]]\nname = "{name}"\ncid = 42\nsocket = "{name}/vh.sock"\nuds_path = "{name}/v.sock"\n'
    (short_dir / "vms.toml").write_text(config)
    (short_dir / "vm").write_text(_VM)
    (short_dir / "vm").chmod(0o755)
    shell = Shell(short_dir)
    found: list[Step] = []
    try:
        for step in written():
            command = re.sub(r"\b(red|blue|green)\b", lambda word: names[word[0]], step.command)
            output = "\n".join(shell.run(command, len(step.output)))
            for name, real in names.items():
                output = output.replace(real, name)
            found.append(Step(step.command, output.replace(str(short_dir), DIRECTORY).splitlines()))
            assert plain(found[-1].output) == plain(step.output), step.command
    finally:
        shell.close()
        for step in found:
            print("\n".join([f"# {step.command}", *step.output]))
