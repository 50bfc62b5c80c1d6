"""Log lines: their forms, and that a slow, full or closed stderr costs lines only."""

import json
import logging
import os
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostvsock import log


def record(text: str, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("vhostvsock.vm", level, "", 0, "%s", (text,), None)
    made.fields = fields
    return made


def test_a_line_for_people_has_time_level_and_vm() -> None:
    line = log.HumanFormatter().format(record("hello", vm="web"))
    assert line.endswith("info    web: hello")
    assert line[:2] == "20"


def test_a_line_for_the_journal_has_a_priority_and_no_time() -> None:
    assert log.JournalFormatter().format(record("bad", logging.ERROR, vm="web")) == "<3>web: bad"
    assert log.JournalFormatter().format(record("x", logging.DEBUG)) == "<7>x"


def test_a_line_for_machines_is_one_object_with_the_fields() -> None:
    entry = json.loads(log.JsonFormatter().format(record("hello\nworld", vm="web", cid=42)))
    assert (entry["level"], entry["message"], entry["vm"], entry["cid"]) == ("info", "hello\nworld", "web", 42)
    assert abs(entry["time"] - time.time()) < 60


def test_the_journal_is_known_by_its_device_and_inode(monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    assert log.under_journal()
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not log.under_journal()


@given(st.text())
def test_no_text_makes_a_second_line(text: str) -> None:
    assert "\n" not in log.HumanFormatter().format(record(text))
    assert "\n" not in log.JournalFormatter().format(record(text))
    assert "\n" not in log.JsonFormatter().format(record(text))


@given(st.text(min_size=3000, max_size=6000))
def test_a_long_json_line_stays_json_within_the_limit(text: str) -> None:
    line = log.JsonFormatter().format(record(text, vm="web"))
    assert len(line) < log.LINE_LIMIT
    assert json.loads(line)["level"] == "info"


def test_a_full_pipe_costs_lines_and_no_time_and_the_loss_is_told() -> None:
    reading, writing = os.pipe()
    handler = log.StderrHandler(writing)
    handler.setFormatter(logging.Formatter("%(message)s"))
    started = time.monotonic()
    for _ in range(200):
        handler.emit(record("x" * 1000))
    assert time.monotonic() - started < 5
    assert handler.lost > 0
    lost = handler.lost
    while len(os.read(reading, 1 << 20)) == 1 << 20:
        pass
    handler.emit(record("again"))
    said = os.read(reading, 1 << 20).decode()
    assert said == f"{lost} log lines were lost: stderr was full\nagain\n"
    os.close(reading)
    os.close(writing)


def test_a_full_socket_costs_lines_and_no_time() -> None:
    left, right = socket.socketpair()
    with left, right:
        wrote = [log.write_line("x" * 1000, left.fileno()) for _ in range(2000)]
    assert wrote[0] is True
    assert wrote[-1] is False


def test_a_closed_descriptor_and_a_gone_reader_are_survived() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert log.write_line("x", writing) is False
    os.close(writing)
    assert log.write_line("x", writing) is False


def test_a_log_on_a_full_disk_costs_lines_and_nothing_else() -> None:
    with open("/dev/full", "wb") as full:
        handler = log.StderrHandler(full.fileno())
        handler.emit(record("x"))
        handler.emit(record("x"))
    assert handler.lost == 2
