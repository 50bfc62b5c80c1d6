"""What scripts/fuzz makes of a fuzzer's output: figures, and a finding that is not overlooked."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lib import fuzz

OUTPUT = """\
INFO: Loaded 1 PC tables (743 PCs): 743 [0x1,0x2),
#2\tINITED cov: 76 ft: 76 corp: 1/1b exec/s: 0 rss: 33Mb
#512\tNEW    cov: 80 ft: 90 corp: 7/30b lim: 4 exec/s: 0 rss: 33Mb L: 4/4 MS: 1 ChangeBit-
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a program that plays the fuzzer is to be written."""
    monkeypatch.setenv("VHOSTVSOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "fuzzer"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{OUTPUT}END\n{script}\n")
    program.chmod(0o755)


def test_figures_are_those_that_the_fuzzer_told_last(program: Path) -> None:
    write(program, 'echo "Done 900 runs in 2 second(s)" >&2')
    outcome = fuzz.run(program, "ring", 1)
    assert (outcome.runs, outcome.covered, outcome.edges, outcome.inputs) == (900, 80, 743, 7)
    assert outcome.finding is None


def test_a_finding_is_named_with_the_way_to_keep_it(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(program, 'echo "artifact_prefix=x; Test unit written to /tmp/found/crash-1" >&2; exit 77')
    outcome = fuzz.run(program, "ring", 1)
    assert outcome.finding == Path("/tmp/found/crash-1")
    fuzz.tell("ring", outcome)
    assert "cp /tmp/found/crash-1 native/fuzz/crashes/ring/" in capsys.readouterr().out


def test_a_fuzzer_that_dies_without_a_finding_is_an_error(program: Path) -> None:
    write(program, "exit 1")
    with pytest.raises(SystemExit) as ended:
        fuzz.run(program, "ring", 1)
    assert ended.value.code == 2


def test_every_target_has_its_module_and_its_entry() -> None:
    for target in fuzz.targets():
        source = fuzz.FUZZ / "src"
        assert (source / f"{target}.rs").exists() or (source / target / "mod.rs").exists()
        assert (fuzz.FUZZ / "targets" / f"{target}.rs").exists()
