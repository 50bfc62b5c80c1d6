"""`vhostvsock netns`: its help and its usage."""

from __future__ import annotations

import pytest

from vhostvsock.cli import main, parser

COMMANDS = [[], ["list"], ["add"], ["del"], ["mode"], ["child-mode"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_codes_and_fits_a_terminal(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["netns", *command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "exit codes:" in text
    assert max(len(line) for line in text.split("\n")) <= 120


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["nonsense"],
        ["add"],
        ["add", "-x"],
        ["add", "a", "--mode", "none"],
        ["del"],
        ["mode", "a", "b"],
        ["child-mode", "a", "b", "c"],
        ["list", "--js"],
    ],
)
def test_wrong_usage_ends_with_code_2(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["netns", *args])
    assert ended.value.code == 2
    lines = capfd.readouterr().err.split("\n")
    assert lines[0].startswith("vhostvsock: error: ")
    assert lines[1].startswith("hint: see `vhostvsock")


def test_every_example_of_the_help_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main(["netns", *command, "--help"])
        lines = [line.strip() for line in capsys.readouterr().out.split("\n")]
        examples = [line for line in lines if line.startswith(("vhostvsock netns ", "ip netns exec red vhostvsock "))]
        examples = [line.split("#")[0].split("|")[0].removeprefix("ip netns exec red ") for line in examples]
        assert examples
        for example in examples:
            if "COMMAND" not in example and "`" not in example:
                parser().parse_args(example.split()[1:])
