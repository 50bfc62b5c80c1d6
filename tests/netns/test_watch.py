"""Names that come and go are noticed, also while they are half made."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
from pathlib import Path

import pytest
from conftest import tool

from vhostvsock.registry import watch as module
from vhostvsock.registry.watch import Change, Watch

from .conftest import Names, cookie


def until(watch: Watch, name: str, count: int) -> list[Change]:
    """The next `count` changes of `name`; waits for events, and looks again while something is pending."""
    found: list[Change] = []
    while len(found) < count:
        found += [change for change in watch.poll() if change.name == name]
        if len(found) < count:
            ready, _, _ = select.select([watch], [], [], module.PENDING_SECONDS if watch.pending else 20)
            assert ready or watch.pending, found
    return found


def test_a_name_is_told_when_it_is_there_made_and_removed(names: Names) -> None:
    before = names.add("before")
    with Watch() as watch:
        assert until(watch, before, 1) == [Change(before, cookie(before))]
        later = names.add("later")
        identity = cookie(later)
        assert until(watch, later, 1) == [Change(later, identity)]
        names.remove(later)
        assert until(watch, later, 1) == [Change(later, None)]
        assert watch.poll() == []


def test_a_name_that_is_made_anew_before_anybody_looked_is_told_as_another_namespace(names: Names) -> None:
    name = names.add()
    with Watch() as watch:
        until(watch, name, 1)
        names.remove(name)
        subprocess.run([tool("ip"), "netns", "add", name], check=True)
        assert until(watch, name, 1) == [Change(name, cookie(name))]


def test_a_file_that_is_not_mounted_on_yet_is_pending(names: Names) -> None:
    name, other = names.new(), names.add("other")
    path = Path("/run/netns", name)
    with Watch() as watch:
        path.touch()
        while not watch.pending or name not in watch._pending:
            watch.poll()
        assert [change for change in watch.poll() if change.name == name] == []
        subprocess.run(["mount", "--bind", f"/run/netns/{other}", str(path)], check=True)
        assert until(watch, name, 1) == [Change(name, cookie(other))]


def test_a_file_that_somebody_left_behind_does_not_stay_pending_for_ever(names: Names) -> None:
    name = names.new()
    path = Path("/run/netns", name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    try:
        with Watch() as watch:
            for _ in range(1000):
                assert not any(change.name == name for change in watch.poll())
                if not watch.pending:
                    break
            assert not watch.pending
    finally:
        path.unlink()


def test_a_directory_that_comes_later_is_watched_from_then_on(short_dir: Path) -> None:
    inside = short_dir / "netns"
    with Watch(str(inside)) as watch:
        assert watch.poll() == []
        inside.mkdir()
        (inside / "x").touch()
        watch.poll()
        assert watch.pending
        subprocess.run(["mount", "--bind", "/proc/self/ns/net", str(inside / "x")], check=True)
        try:
            assert [change.name for change in until(watch, "x", 1)] == ["x"]
        finally:
            subprocess.run(["umount", str(inside / "x")], check=True)
        os.unlink(inside / "x")
        assert until(watch, "x", 1) == [Change("x", None)]


@pytest.mark.timeout(60)
def test_changes_come_by_themselves_in_an_event_loop(names: Names) -> None:
    async def first_two(watch: Watch, name: str) -> list[Change]:
        found: list[Change] = []
        changes = watch.changes()
        async for change in changes:
            if change.name != name:
                continue
            found.append(change)
            if len(found) == 2:
                break
            await asyncio.to_thread(names.remove, name)
        await changes.aclose()  # type: ignore[attr-defined]
        return found

    async def main() -> None:
        name = names.new()
        with Watch() as watch:
            task = asyncio.create_task(first_two(watch, name))
            await asyncio.to_thread(subprocess.run, [tool("ip"), "netns", "add", name], check=True)
            found = await task
            assert [change.id is None for change in found] == [False, True]

    asyncio.run(main())
