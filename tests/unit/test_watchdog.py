"""The watchdog: a sign of life is sent when everyone has answered, and not otherwise."""

import asyncio
import os

import pytest

from vhostvsock.systemd import watchdog


class Thread:
    """Stands for a device: answers unless told not to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hangs = False
        self.asked = 0

    def ask(self) -> None:
        self.asked += 1

    def answered(self) -> bool:
        return not self.hangs


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_period_is_the_managers_and_only_for_the_process_it_means(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert watchdog.period(environ) == seconds


def test_signs_stop_while_one_thread_hangs_and_go_on_after(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(watchdog, "notify", lambda *lines: sent.extend(lines))
    threads = [Thread("web"), Thread("db")]

    async def rounds(count: int) -> None:
        goal = threads[0].asked + count
        while threads[0].asked < goal:
            await asyncio.sleep(0)

    async def play() -> None:
        task = asyncio.create_task(watchdog.watch(0.004, lambda: threads))
        await rounds(3)
        assert sent
        assert set(sent) == {"WATCHDOG=1"}
        threads[1].hangs = True
        await rounds(1)
        sent.clear()
        await rounds(5)
        assert sent == []
        threads[1].hangs = False
        await rounds(2)
        assert sent
        task.cancel()

    with caplog.at_level("ERROR", logger="vhostvsock.watchdog"):
        asyncio.run(play())
    # Once, however long it hangs.
    assert [record.getMessage() for record in caplog.records] == [
        "no answer from the thread of db: no sign of life is sent"
    ]
