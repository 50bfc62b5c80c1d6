"""Log lines on stderr: for people, for the journal, or one JSON object per line for machines.

Before: everything that logs through `logging`, and the native events that daemon.py passes on. After: stderr.
Rules:  - A reader of stderr that is slow or gone costs log lines, never time and never the daemon.
        - Fields that belong to a line (such as the VM's name) travel in `extra={"fields": {...}}`.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import stat
import time
from typing import Any

# What poll(2) promises to take at once on a pipe is PIPE_BUF; a longer line is cut.
LINE_LIMIT = select.PIPE_BUF

# sd-daemon(3): the journal reads the priority from "<N>" at the start of a line.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def setup(verbosity: int, form: str = "auto") -> int:
    """Send the log of this process to stderr and return its level. Default: warnings; -v: information; -vv: all."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = StderrHandler()
    handler.setFormatter(formatter(form))
    root = logging.getLogger("vhostvsock")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
    # asyncio tells of callbacks that failed; they are ours, so they are said in the same form.
    loop_log = logging.getLogger("asyncio")
    loop_log.handlers[:] = [handler]
    loop_log.setLevel(max(level, logging.WARNING))
    loop_log.propagate = False
    # logging's own complaints about a handler would go to stderr the blocking way.
    logging.raiseExceptions = False
    return level


def formatter(form: str) -> logging.Formatter:
    """The formatter for a `--log-format`."""
    if form == "json":
        return JsonFormatter()
    return JournalFormatter() if under_journal() else HumanFormatter()


def under_journal() -> bool:
    """Whether stderr leads to systemd's journal, which adds time and unit by itself."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _one_line(text: str) -> str:
    """Text from a guest or a file name must not forge a second log line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _TextFormatter(logging.Formatter):
    """`vm: message` on one line; a traceback, where there is one, on the lines below."""

    def body(self, record: logging.LogRecord) -> str:
        vm = _fields(record).get("vm")
        text = _one_line(record.getMessage())
        if vm is not None:
            text = f"{vm}: {text}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class HumanFormatter(_TextFormatter):
    """With the time, for terminals and files."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{when}.{int(record.msecs):03d} {record.levelname.lower():7} {self.body(record)}"


class JournalFormatter(_TextFormatter):
    """With the priority in the journal's form, and no time."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in self.body(record).split("\n"))


class JsonFormatter(logging.Formatter):
    """One object per line: time (seconds since the epoch), level, message, and the line's fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        entry.update((key, value) for key, value in _fields(record).items() if key not in entry)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(entry, default=str)
        if len(text) >= LINE_LIMIT:
            # Cutting the text would leave something that is no JSON: shorten the message instead (worst case, every
            # character is escaped to 12).
            entry = {key: entry[key] for key in ("time", "level", "message")}
            entry["message"] = entry["message"][:250]
            entry["truncated"] = True
            text = json.dumps(entry)
        return text


def write_line(text: str, fd: int = 2) -> bool:
    """Write one line to `fd` if that is possible at once. False where it was not."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) >= LINE_LIMIT:
        data = data[: LINE_LIMIT - 4] + b"..."
    data += b"\n"
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            # Without O_NONBLOCK on the descriptor, which others may share.
            with socket.socket(fileno=os.dup(fd)) as sock:
                return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        ready = poll.poll(0)
        if not ready or not ready[0][1] & select.POLLOUT:
            return False
        return os.write(fd, data) == len(data)
    except OSError:
        return False  # closed, or nobody reads it any more


class StderrHandler(logging.Handler):
    """Writes to descriptor 2 without waiting; lines that do not fit are counted, and the count is told later."""

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self._fd = fd
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if self.lost:
                note = logging.LogRecord(
                    "vhostvsock", logging.WARNING, "", 0, "%d log lines were lost: stderr was full", (self.lost,), None
                )
                if not write_line(self.format(note), self._fd):
                    self.lost += 1
                    return
                self.lost = 0
            if not write_line(text, self._fd):
                self.lost += 1
        except Exception:
            # A log line is never worth the daemon.
            self.lost += 1


def announce(message: str, form: str, **fields: Any) -> None:
    """Say something at every log level, once: the line that others wait for."""
    if form == "json":
        record = logging.LogRecord("vhostvsock", logging.INFO, "", 0, message, (), None)
        record.fields = fields
        # The text stays recognisable within the object.
        write_line(JsonFormatter().format(record))
    else:
        write_line(message)


def complain(message: str, hint: str | None = None) -> None:
    """The last words of a command that failed: what is wrong, and how to mend it."""
    write_line(_one_line(f"vhostvsock: error: {message}"))
    if hint:
        write_line(_one_line(f"hint: {hint}"))


def warn(message: str) -> None:
    """Something that a command has to say beside what it was asked for."""
    write_line(_one_line(f"vhostvsock: warning: {message}"))
