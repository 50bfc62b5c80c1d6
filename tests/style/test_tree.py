"""Rules of the tree that no linter knows."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from vhostvsock.cli import parser

# The aim is 400; at this length a file holds more than one concept.
LINES = 700
_CODE = (".py", ".rs", ".sh", ".c")
_NOT_OURS = {".git", ".venv", "target", "_native", "__pycache__", ".hypothesis", ".mypy_cache", ".ruff_cache"}


def source_files() -> list[Path]:
    found = []
    for path in ROOT.rglob("*"):
        if _NOT_OURS & set(path.relative_to(ROOT).parts) or not path.is_file():
            continue
        if path.suffix in _CODE or (path.parent.name in ("scripts", ".ci") and not path.suffix):
            found.append(path)
    return sorted(found)


def test_no_file_holds_more_than_one_can_read() -> None:
    long = {
        str(path.relative_to(ROOT)): n for path in source_files() if (n := len(path.read_text().split("\n"))) > LINES
    }
    assert long == {}


def test_every_source_file_begins_by_saying_what_it_is_for() -> None:
    silent = []
    for path in source_files():
        text = path.read_text()
        lines = [line for line in text.split("\n")[:8] if line.strip() and not line.startswith("#!")]
        if lines and not re.match(r'("""|//|/\*|#|r""")', lines[0]):
            silent.append(str(path.relative_to(ROOT)))
    assert silent == []


_COMMANDS = ("run", "connect", "listen", "exec", "ls", "netns", "systemd")


def commands_in(text: str) -> list[str]:
    """Its lines that are `vhostvsock ...` or `scripts/...` commands."""
    found = []
    for line in text.replace("\\\n", " ").split("\n"):
        command = re.sub(r"^([$#] )?((echo|tar) [^|]*\| )?(ip netns exec \w+ )?", "", line.strip())
        if re.match(r"(vhostvsock |scripts/|\.ci/)", command):
            found.append(command)
    return found


def written_commands() -> list[str]:
    """The commands in the code blocks of all documents, and in the examples of the help."""
    found = []
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for language, block in re.findall(r"```(\w*)\n(.*?)```", document.read_text(), re.DOTALL):
            if language in ("", "sh", "console", "bash"):
                found += commands_in(block)
    for command in _COMMANDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            parser().parse_args([command, "--help"])
        found += commands_in(said.getvalue().partition("examples:\n")[2])
    return sorted(set(found))


def test_the_example_of_the_readme_is_the_one_that_a_test_runs() -> None:
    def example(path: str) -> str:
        return (ROOT / path).read_text().partition("```console\n")[2].partition("```")[0]

    assert example("README.md") == example("docs/namespaces.md") != ""


@pytest.mark.parametrize(
    "path", ["README.md", "ARCHITECTURE.md", *(f"docs/{p.name}" for p in (ROOT / "docs").iterdir())]
)
def test_links_of_the_documents_lead_somewhere(path: str) -> None:
    text = (ROOT / path).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / path).parent / link).exists()] == []


def test_commands_are_found_in_documents_and_help() -> None:
    assert {command.split()[1] for command in written_commands() if command.startswith("vhostvsock ")} >= set(_COMMANDS)


@pytest.mark.parametrize("command", written_commands())
def test_commands_of_documents_and_help_exist(command: str) -> None:
    words = shlex.split(re.split(r"[|<>&;]", command, maxsplit=1)[0], comments=True)
    if words[0] != "vhostvsock":
        path = ROOT / words[0]
        assert path.is_file(), f"{words[0]} does not exist"
        assert path.stat().st_mode & 0o100, f"{words[0]} is not executable"
        return
    if {"--help", "--version"} & set(words):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(words[1:])
        assert ended.value.code == 0
    else:
        parser().parse_args(words[1:])


def test_the_readme_is_there() -> None:
    assert (ROOT / "README.md").is_file()


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_tells_examples_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "exit codes:" in text


def files_of_the_tree() -> list[str]:
    """Their paths, without what builds and tools leave there."""
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(path) for path in paths if not _NOT_OURS & set(path.parts)]


def named_files(document: str) -> set[str]:
    """What looks like a file or a directory of the tree in a document."""
    words = re.findall(r"`([\w./-]+)`", (ROOT / document).read_text())
    return {word for word in words if re.search(r"\.(py|rs|sh|toml|cfg)$|\w/$", word)}


def test_architecture_names_every_module_and_no_file_that_is_not_there() -> None:
    paths = files_of_the_tree()
    named = named_files("ARCHITECTURE.md")

    def names(word: str, path: str) -> bool:
        return f"/{word}" in f"/{path}" if word.endswith("/") else f"/{path}".endswith(f"/{word}")

    assert sorted(word for word in named if not any(names(word, path) for path in paths)) == []
    modules = [
        path
        for path in paths
        if re.match(r"(vhostvsock|native/src)/.*\.(py|rs)$", path)
        if Path(path).name not in ("__init__.py", "__main__.py", "mod.rs", "lib.rs") and "/mux/tests/" not in path
    ]
    assert len(modules) > 80
    files = {word for word in named if not word.endswith("/")}
    assert [path for path in modules if not any(names(word, path) for word in files)] == []


# Where a file of ours may ask for the time of day: for people who read the log.
_TIME_OF_DAY = {"vhostvsock/log.py"}
_WALL_CLOCK = re.compile(
    r"SystemTime|Realtime|CLOCK_REALTIME|\btime\.(time|ctime|localtime|gmtime|strftime)\b|\bdatetime\b|\butime\("
)


def test_no_deadline_depends_on_the_clock_that_can_be_set() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in source_files()
        if path.is_relative_to(ROOT / "vhostvsock") or path.is_relative_to(ROOT / "native" / "src")
        if _WALL_CLOCK.search(path.read_text())
    }
    assert found == _TIME_OF_DAY


def known_tests() -> set[str]:
    """The names of all tests, Rust's and Python's."""
    found: set[str] = set()
    for path in source_files():
        pattern = {".rs": r"\bfn (\w+)\(", ".py": r"\bdef (test_\w+)\("}.get(path.suffix)
        if pattern is not None:
            found.update(re.findall(pattern, path.read_text()))
    return found


@pytest.mark.parametrize(("document", "at_least"), [("threat-model.md", 100), ("integration.md", 40)])
def test_every_test_that_a_document_names_exists(document: str, at_least: int) -> None:
    text = (ROOT / "docs" / document).read_text()
    # Names of tests are sentences; those of counters and options are shorter.
    named = {name for name in re.findall(r"`(\w+)`", text) if name.count("_") >= 3}
    assert len(named) > at_least
    assert sorted(named - known_tests()) == []


def test_the_docs_explain_every_counter_as_the_code_does() -> None:
    listed = re.search(r"^counters! \{\n(.*)^\}", (ROOT / "native/src/stats.rs").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    code = {(name, meaning) for meaning, name in re.findall(r"/// (.*)\.\n    (\w+),", listed[1])}
    assert len(code) == listed[1].count(",\n")
    page = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/counters.md").read_text(), re.MULTILINE)
    assert sorted(page) == sorted(code)


def test_shell_scripts_parse() -> None:
    for path in ("scripts/test", "scripts/lib/setup.sh", ".ci/run"):
        subprocess.run(["bash", "-n", path], cwd=ROOT, check=True)


def test_versions_that_are_written_twice_agree() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    crate = (ROOT / "native" / "Cargo.toml").read_text()
    version = re.search(r'^version = "([^"]+)"', project, re.MULTILINE)
    assert version is not None
    assert f'version = "{version[1]}"' in crate
    rust = re.search(r'^rust-version = "(\d+)\.(\d+)"', crate, re.MULTILINE)
    assert rust is not None
    assert f"MINIMUM = ({rust[1]}, {rust[2]})" in (ROOT / "scripts/lib/vhostvsock_build.py").read_text()
    assert f"RUST_MINIMUM={rust[1]}.{rust[2]}" in (ROOT / "scripts/lib/setup.sh").read_text()
