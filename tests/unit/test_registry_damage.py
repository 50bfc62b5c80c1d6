"""The registry's files under anything that may be in them, while daemons run: each call works or says what is wrong,
and once the file is removed every daemon enters itself again."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vhostvsock.registry import database
from vhostvsock.registry.errors import Refused, RegistryError
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.notes import KnownNetns, Notes
from vhostvsock.registry.rules import Mode, NetnsId, born
from vhostvsock.registry.store import Registry

INIT, RED = NetnsId(1), NetnsId(9)

Damage = Callable[[Path], None]


@pytest.fixture(scope="module", autouse=True)
def _impatient() -> Iterator[None]:
    """Nobody else has the file here: what looks locked is damage, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "BUSY_SECONDS", 0.02)
        yield


# What happens to the file -------------------------------------------------------------------------------------------


def overwritten(data: bytes) -> Damage:
    return lambda file: file.write_bytes(data) and None


def truncated(part: float) -> Damage:
    return lambda file: os.truncate(file, int(file.stat().st_size * part))


def scribbled(places: list[tuple[float, bytes]]) -> Damage:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        for part, data in places:
            at = int(len(content) * part)
            content[at : at + len(data)] = data
        file.write_bytes(content)

    return damage


def altered(statements: list[tuple[str, tuple[object, ...]]]) -> Damage:
    """By somebody who knows SQL."""

    def damage(file: Path) -> None:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
            for statement, values in statements:
                with contextlib.suppress(sqlite3.Error):  # a table that an earlier one took away
                    connection.execute(statement, values)

    return damage


COLUMNS = {
    "daemons": ("id", "pid", "bridge"),
    "claims": ("id", "domain", "cid", "cookie", "name", "daemon", "running"),
    "listeners": ("id", "domain", "cid", "port", "cookie", "uid", "daemon"),
    "cursors": ("cookie", "port"),
    "boot": ("id",),
}
_VALUES = st.one_of(
    st.none(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.text(max_size=20), st.binary(max_size=20)
)
_TABLES = st.sampled_from(sorted(COLUMNS))
_PLACES = st.tuples(_TABLES, st.integers(0, 6)).map(lambda it: (it[0], COLUMNS[it[0]][it[1] % len(COLUMNS[it[0]])]))


def _changed(table: str, column: str, value: object) -> tuple[str, tuple[object, ...]]:
    """One row only: keys are unique."""
    key = COLUMNS[table][0]
    return f"UPDATE {table} SET {column} = ? WHERE {key} = (SELECT min({key}) FROM {table})", (value,)


def _added(table: str, values: list[object]) -> tuple[str, tuple[object, ...]]:
    return f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", tuple(values)


STATEMENTS = st.one_of(
    _TABLES.map(lambda table: (f"DROP TABLE {table}", ())),
    _TABLES.map(lambda table: (f"DELETE FROM {table}", ())),
    _PLACES.map(lambda it: (f"ALTER TABLE {it[0]} DROP COLUMN {it[1]}", ())),
    _PLACES.map(lambda it: (f"ALTER TABLE {it[0]} RENAME COLUMN {it[1]} TO other", ())),
    _TABLES.map(lambda table: (f"ALTER TABLE {table} RENAME TO other", ())),
    _TABLES.map(lambda table: (f"CREATE TABLE {table} (x)", ())),
    st.tuples(_PLACES, _VALUES).map(lambda it: _changed(*it[0], it[1])),
    _TABLES.flatmap(
        lambda table: st.lists(_VALUES, min_size=len(COLUMNS[table]), max_size=len(COLUMNS[table])).map(
            lambda values: _added(table, values)
        )
    ),
    st.integers(-1, 9).map(lambda version: (f"PRAGMA user_version = {version}", ())),
)
DAMAGES = st.one_of(
    st.binary(max_size=5000).map(overwritten),
    st.binary(max_size=2000).map(lambda data: overwritten(b"SQLite format 3\0" + data)),
    st.floats(0, 1).map(truncated),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=200)), min_size=1, max_size=8).map(scribbled),
    st.lists(STATEMENTS, min_size=1, max_size=4).map(altered),
)


# What daemons do meanwhile ------------------------------------------------------------------------------------------


def tried(call: Callable[[], object]) -> object:
    """What the call gives; nothing where it says in the documented way that it cannot."""
    try:
        return call()
    except RegistryError as error:
        assert error.hint
        assert "\n" not in str(error)
    except Refused as error:
        assert error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
    return None


def everything(registry: Registry, numbers: Iterator[int]) -> None:
    """Each call, in an order that gives up what it took."""
    number = next(numbers)
    claim = tried(lambda: registry.claim(INIT, number, "new"))
    if claim is not None:
        tried(lambda: registry.set_running(claim, True))  # type: ignore[arg-type]
        tried(lambda: registry.release(claim))  # type: ignore[arg-type]
    for port in (number, 0xFFFF_FFFF):
        listener = tried(lambda port=port: registry.listen(INIT, 2, port, privileged=True))
        if listener is not None:
            tried(lambda: registry.unlisten(listener))  # type: ignore[arg-type]  # noqa: B023 - called at once
    tried(lambda: registry.find_vm(INIT, 42))
    tried(lambda: registry.find_listener(INIT, 2, 5000))
    tried(lambda: registry.has_port(INIT, 5000, 0))
    for ask in (registry.vms, registry.listeners, registry.daemons):
        tried(ask)
    tried(lambda: registry.vms(INIT))


def opened(directory: Path) -> Registry:
    return Registry(str(directory), kernel=KernelModes("/nonexistent"), own_cid=lambda: None)


@settings(max_examples=150)
@given(DAMAGES)
@example(altered([_changed("daemons", "id", "../../bystander")]))
@example(altered([_changed("daemons", "id", b"\0")]))
@example(altered([_changed("claims", "cid", -1)]))
@example(altered([_changed("claims", "cookie", "x")]))
@example(altered([_changed("listeners", "domain", 0.5), ("UPDATE listeners SET cookie = x'00'", ())]))
@example(altered([("INSERT INTO cursors VALUES (1, 'x')", ())]))
@example(scribbled([(0.0881991450160229, b"\x80")]))
@example(overwritten(b""))
def test_whatever_the_file_becomes_calls_work_or_say_why_and_a_removed_file_is_made_anew(damage: Damage) -> None:
    numbers = itertools.count(1000)
    with tempfile.TemporaryDirectory(prefix="vr-") as name:
        directory, bystander = Path(name) / "run", Path(name) / "bystander.lock"
        bystander.touch()
        with opened(directory) as one, opened(directory) as two:
            for registry, bridge in ((one, "one"), (two, "two")):
                registry.register_daemon(bridge)
            claims = [one.claim(INIT, 42, "web"), two.claim(INIT, 43, "db")]
            listener = two.listen(INIT, 2, 5000)
            damage(directory / "registry.db")
            for registry in (one, two):
                everything(registry, numbers)
            with contextlib.suppress(RegistryError), opened(directory) as newcomer:
                newcomer.register_daemon("newcomer")
                everything(newcomer, numbers)
            assert bystander.exists()
            (directory / "registry.db").unlink()  # as the hint says
            for registry in (one, two):
                tried(registry.vms)  # enters itself again
            assert one.vms() == two.vms() == claims
            assert one.find_listener(INIT, 2, 5000) == listener
            assert len(one.daemons()) == 2
            assert two.claim(INIT, 44, "third").cid.value == 44


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
_KEYS = ("boot", "name", "mode", "child_mode", "child_locked", "by_kernel")


@given(st.one_of(st.binary(max_size=200), _JSON, st.dictionaries(st.sampled_from(_KEYS), _JSON)))
@example(b"[" * 200_000)
@example({"name": 3})
def test_a_note_is_read_as_it_was_written_or_told_to_be_damaged(content: object) -> None:
    with tempfile.TemporaryDirectory(prefix="vr-") as name:
        directory = Path(name)
        (directory / "netns").mkdir()
        notes = Notes(name, system=name)
        known = KnownNetns(RED, "red", born(Mode.LOCAL), False)
        notes.save(known)
        assert notes.load_all() == [known]
        file = directory / "netns" / "9"
        if isinstance(content, dict):
            file.write_text(json.dumps(json.loads(file.read_text()) | content))
        else:
            file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        for ask in (lambda: [notes.load(RED)], notes.load_all):
            try:
                for found in ask():
                    assert found is None or (isinstance(found.name, str | None) and found.state.mode in Mode)
            except RegistryError as error:
                assert error.hint
                assert str(file) in str(error)
        file.unlink()
        notes.save(known)
        assert notes.load(RED) == known
