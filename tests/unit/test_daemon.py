"""What a daemon passes on of its configuration."""

from __future__ import annotations

import asyncio
import logging

import pytest

from vhostvsock import daemon
from vhostvsock.config import DaemonConfig


class _SeenError(Exception):
    pass


@pytest.mark.parametrize(("parent", "own"), [(True, 4711), (False, None)])
def test_without_a_parent_the_host_has_no_cid_that_guests_could_not_take(
    monkeypatch: pytest.MonkeyPatch, parent: bool, own: int | None
) -> None:
    def registry(_: object, *, own_cid: object = None) -> object:
        assert callable(own_cid)
        raise _SeenError(own_cid())

    monkeypatch.setattr(daemon, "host_cid", lambda: 4711)
    monkeypatch.setattr(daemon, "Registry", registry)
    with pytest.raises(_SeenError) as seen:
        asyncio.run(daemon.Daemon(DaemonConfig((), parent=parent), logging.WARNING).run(lambda _: None))
    assert seen.value.args == (own,)
