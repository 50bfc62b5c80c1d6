"""Debian packages of any suite, downloaded and unpacked, never installed.

Before: fetch.py names suites and packages. After: apt-get does the downloading and checks signatures and sums.
Rules:  - The machine's own package lists and database stay untouched: each set of suites has its own lists and
          cache, and an empty database, below the cache directory.
        - The mirror is the one that the machine's own sources name, so a proxy or a company mirror goes on working;
          VHOSTVSOCK_MIRROR overrides it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Lists older than this are read anew before something is fetched; what was fetched already is not looked at.
_LISTS_GOOD_FOR = 12 * 3600.0


class FetchError(Exception):
    """Something could not be had; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def say(text: str) -> None:
    print(f"fetch: {text}", file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """Where everything that was fetched or built from it is kept."""
    own = os.environ.get("VHOSTVSOCK_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base).absolute() / "vhostvsock"


def one_line_entries(text: str) -> Iterable[tuple[str, str]]:
    """(URI, suite) of each `deb` line of a sources.list that offers main."""
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", "", line.split("#")[0]).split()
        if len(words) >= 4 and words[0] == "deb" and "main" in words[3:]:
            yield words[1], words[2]


def deb822_entries(text: str) -> Iterable[tuple[str, str]]:
    """(URI, suite) of each stanza of a .sources file that is enabled and offers main."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = fields.get(name, "") + " " + line.strip()
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        if "deb" not in fields.get("types", "").split() or "main" not in fields.get("components", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite


def mirror(etc: Path = Path("/etc/apt")) -> str:
    """The address of the Debian archive that this machine uses."""
    own = os.environ.get("VHOSTVSOCK_MIRROR")
    if own:
        return own.rstrip("/")
    hint = "set VHOSTVSOCK_MIRROR to the address of a Debian mirror (the directory that holds dists/ and pool/)"
    parts = etc / "sources.list.d"
    found: list[tuple[str, str]] = []
    for path in [etc / "sources.list", *sorted(parts.glob("*"))]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        read = deb822_entries if path.suffix == ".sources" else one_line_entries
        found += read(path.read_text(encoding="utf-8", errors="replace"))
    suites = re.compile(r"(bookworm|trixie|forky|sid|stable|testing|unstable)$")
    for uri, suite in found:
        if suites.match(suite) and "security" not in uri:
            return uri.rstrip("/")
    raise FetchError("no Debian mirror is named in this machine's apt sources", hint)


class Suites:
    """apt with package lists of its own: those of the given suites, and nothing installed."""

    def __init__(self, *suites: str) -> None:
        self._suites = suites
        self._root = cache_dir() / "apt" / "+".join(suites)

    def _apt(self, *command: str, cwd: Path | None = None) -> str:
        env = {**os.environ, "APT_CONFIG": str(self._root / "apt.conf"), "LC_ALL": "C"}
        done = subprocess.run(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
            reason = lines[0] if lines else "no reason given"
            raise FetchError(
                f"{' '.join(command[:2])} failed for {', '.join(self._suites)}: {reason}",
                "check the network; VHOSTVSOCK_MIRROR names another Debian mirror",
            )
        return done.stdout

    def open(self) -> Suites:
        """Have lists that are not old."""
        if shutil.which("apt-get") is None:
            raise FetchError("apt-get is needed to fetch guest kernels and QEMU", "run this on Debian 12 or 13")
        stamp = self._root / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < _LISTS_GOOD_FOR:
            return self
        for directory in ("lists/partial", "cache/archives/partial", "parts"):
            (self._root / directory).mkdir(parents=True, exist_ok=True)
        (self._root / "status").touch()
        signed = f" signed-by={KEYRING}" if KEYRING.exists() else ""
        address = mirror()
        (self._root / "sources.list").write_text(
            "".join(f"deb [target=Packages{signed}] {address} {suite} main\n" for suite in self._suites)
        )
        settings = {
            "Dir::State::lists": self._root / "lists",
            "Dir::State::status": self._root / "status",
            "Dir::State::extended_states": self._root / "extended_states",
            "Dir::Cache": self._root / "cache",
            "Dir::Etc::sourcelist": self._root / "sources.list",
            "Dir::Etc::sourceparts": self._root / "parts",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": self._root / "parts",
            "Acquire::Languages": "none",
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Retries": "3",
            "APT::Update::Error-Mode": "any",
            "APT::Architecture": "amd64",
            # The account that apt downloads as need not be able to enter the cache directory.
            "APT::Sandbox::User": "",
        }
        text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        hooks = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")
        text += "".join(f"#clear {hook};\n" for hook in hooks)
        (self._root / "apt.conf").write_text(text)
        say(f"reading the package lists of {', '.join(self._suites)} ...")
        self._apt("apt-get", "update", "-q")
        stamp.touch()
        return self

    def version(self, package: str) -> str | None:
        """The version that would be fetched, or None where the suites do not have the package."""
        found = re.search(r"Candidate: (\S+)", self._apt("apt-cache", "policy", package))
        return None if found is None or found[1] == "(none)" else found[1]

    def depends(self, package: str) -> list[str]:
        """The names after `Depends:`, the first of each alternative among them."""
        return re.findall(r"^ [ |]Depends: ([^\s<]+)", self._apt("apt-cache", "depends", package), re.MULTILINE)

    def closure(self, *packages: str) -> dict[str, str]:
        """Everything that an installation on an empty system would bring: name and version."""
        out = self._apt(
            "apt-get", "install", "-s", "-y", "-q", "--no-install-recommends", "-t", self._suites[-1], *packages
        )
        return dict(re.findall(r"^Inst (\S+) \((\S+) ", out, re.MULTILINE))

    def unpack(self, packages: Sequence[str], into: Path, what: str) -> None:
        """Download `name` or `name=version` and unpack all below the directory `into`."""
        debs = into.with_name(into.name + ".debs")
        shutil.rmtree(debs, ignore_errors=True)
        debs.mkdir(parents=True)
        start = time.monotonic()
        say(f"downloading {what} ...")
        try:
            self._apt("apt-get", "download", "-q", *packages, cwd=debs)
            files = sorted(debs.glob("*.deb"))
            size = sum(file.stat().st_size for file in files) / 1e6
            say(f"unpacking {what} ({len(files)} packages, {size:.0f} MB in {time.monotonic() - start:.0f} s) ...")
            into.mkdir(parents=True, exist_ok=True)
            for file in files:
                subprocess.run(["dpkg-deb", "-x", str(file), str(into)], check=True, stdin=subprocess.DEVNULL)
        finally:
            shutil.rmtree(debs, ignore_errors=True)
