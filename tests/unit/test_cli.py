"""The command line: version, help, and errors of one line."""

from pathlib import Path

import pytest

from vhostvsock import __version__
from vhostvsock.cli import main
from vhostvsock.cli.output import say, table


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"vhostvsock {__version__}\n"


@pytest.mark.parametrize("args", [[], ["run"], ["connect"]])
def test_help_fits_a_terminal(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*args, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes:" in text
    assert max(len(line) for line in text.split("\n")) <= 120


@pytest.mark.parametrize("args", [[], ["nonsense"], ["run", "--guest-c", "42"], ["connect"]])
def test_wrong_usage_ends_with_code_2(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    lines = capfd.readouterr().err.split("\n")
    assert lines[0].startswith("vhostvsock: error: ")
    assert lines[1].startswith("hint: see `vhostvsock")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("args", "command"),
    [(["run", "--guestcid", "42"], "run"), (["ls", "--jsn"], "ls"), (["connect", "--usd", "v.sock", "5"], "connect")],
)
def test_who_writes_an_unknown_option_is_sent_to_the_help_that_lists_the_options(
    args: list[str], command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(args)
    assert capfd.readouterr().err.endswith(f"hint: see `vhostvsock {command} --help`\n")


@pytest.mark.parametrize("command", ["run", "connect", "listen", "exec", "ls", "netns"])
def test_help_tells_the_environment_that_counts(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "environment:\n" in (text := capsys.readouterr().out)
    assert "VHOSTVSOCK_RUNTIME_DIR" in text.partition("environment:\n")[2]


@pytest.mark.parametrize("args", [["connect", "42", "1234"], ["listen", "1234"], ["ls"]])
def test_who_finds_no_daemon_is_told_how_to_start_one(
    args: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHOSTVSOCK_RUNTIME_DIR", str(tmp_path))
    assert main(args) == 1
    error, hint, end = capfd.readouterr().err.split("\n")
    assert f"{tmp_path}/bridge" in error
    assert hint == "hint: start one: vhostvsock run --help"
    assert end == ""


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say(table([("A", "B"), ("\x1b[2J", "x")]))
    assert capsys.readouterr().out == "A     B\n\\x1b[2J  x\n"


@pytest.mark.parametrize(
    "args",
    [
        ["connect", "4294967296", "5"],
        ["connect", "5", "4294967296"],
        ["listen", "4294967296"],
        ["listen", "--", "-1"],
        ["listen", "--cid", "4294967296", "5"],
    ],
)
def test_numbers_of_more_than_32_bits_are_wrong_usage(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert "does not fit in 32 bits" in capfd.readouterr().err
