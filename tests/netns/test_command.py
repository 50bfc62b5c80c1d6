"""`vhostvsock netns`, run as people run it: within namespaces, with names, pids and paths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import tool

from vhostvsock.registry import netns
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.rules import NetnsId
from vhostvsock.registry.store import Registry

from .conftest import Command, Names, cookie

pytestmark = pytest.mark.skipif(KernelModes().present(), reason="here the kernel decides the modes, not the registry")


def listed(command: Command, within: str | None = None) -> dict[str | None, dict[str, object]]:
    return {one["name"]: one for one in json.loads(command.ok("netns", "list", "--json", within=within))}


def test_a_namespace_is_made_with_the_mode_of_where_the_command_runs(command: Command, names: Names) -> None:
    plain, red, blue = names.new("plain"), names.new("red"), names.new("blue")
    command.ok("netns", "add", plain)
    command.ok("netns", "add", red, "--mode", "local")
    command.ok("netns", "add", blue, within=red)
    assert [command.ok("netns", "mode", name) for name in (plain, red, blue)] == ["global\n", "local\n", "local\n"]
    assert command.ok("netns", "child-mode", blue) == "local\n"
    assert command.ok("netns", "mode", within=blue) == "local\n"
    assert command.ok("netns", "mode") == "global\n"


@pytest.mark.parametrize("by", ["exec", "nsenter"])
def test_a_namespace_made_within_another_one_is_seen_outside(command: Command, names: Names, by: str) -> None:
    # `ip netns exec` has a mount namespace of its own, out of which no mount leads.
    outer, inner = names.add("outer"), names.new("inner")
    command.ok("netns", "add", inner, within=outer, by=by)
    assert cookie(inner) not in (cookie(outer), netns.own())
    assert command.ok("netns", "mode", inner, within=outer, by=by) == "global\n"


@pytest.mark.parametrize("by", ["exec", "nsenter"])
def test_a_namespace_removed_within_another_one_is_gone_outside(command: Command, names: Names, by: str) -> None:
    outer, other = names.add("outer"), names.add("other")
    command.ok("netns", "del", other, within=outer, by=by)
    assert other not in netns.names()


def test_children_of_a_manager_namespace_are_local_and_it_stays_global(command: Command, names: Names) -> None:
    manager, child, early = names.new("manager"), names.new("child"), names.new("early")
    command.ok("netns", "add", manager)
    command.ok("netns", "add", early, within=manager)
    command.ok("netns", "child-mode", "local", within=manager)
    command.ok("netns", "add", child, within=manager)
    modes = [command.ok("netns", "mode", name) for name in (manager, early, child)]
    assert modes == ["global\n", "global\n", "local\n"]


def test_a_mode_that_cannot_be_had_is_refused_and_nothing_is_made(command: Command, names: Names) -> None:
    red, blue = names.new("red"), names.new("blue")
    command.ok("netns", "add", red, "--mode", "local")
    assert "EPERM" in command.fails("netns", "add", blue, "--mode", "global", within=red)
    assert blue not in netns.names()


def test_a_child_mode_is_set_once(command: Command, names: Names) -> None:
    name = names.add()
    assert "EINVAL" in command.fails("netns", "child-mode", name, "Local")
    command.ok("netns", "child-mode", name, "")
    command.ok("netns", "child-mode", name, "global")
    command.ok("netns", "child-mode", name, "global")
    assert "EBUSY" in command.fails("netns", "child-mode", name, "local")
    assert command.ok("netns", "child-mode", name) == "global\n"
    red = names.new("red")
    command.ok("netns", "add", red, "--mode", "local")
    command.ok("netns", "child-mode", "local", within=red)
    assert "EPERM" in command.fails("netns", "child-mode", "global", within=red)


# Another user may not be able to read this Python, so everything is imported before the user is changed.
AS_NOBODY = """
# All that is needed later: what is in the home directory of root cannot be read any more then.
import encodings.ascii, gettext, locale, os, shutil, sys, textwrap
import vhostvsock.cli.netns
from vhostvsock.cli import main
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(main(sys.argv[1:]))
"""


def test_others_than_its_administrators_may_look_at_a_child_mode_and_not_set_it(command: Command, names: Names) -> None:
    name = names.add()
    command.ok("netns", "list")
    subprocess.run(["chown", "-R", "65534:65534", str(Path(command.directory).parent)], check=True)
    command.program = [sys.executable, "-c", AS_NOBODY]
    assert command.ok("netns", "child-mode", within=name) == "global\n"
    assert "EACCES" in command.fails("netns", "child-mode", "local", within=name)
    assert command.ok("netns", "child-mode", within=name) == "global\n"


def test_the_list_tells_names_modes_and_vms(command: Command, names: Names) -> None:
    red, plain, gone = names.new("red"), names.add("plain"), names.new("gone")
    command.ok("netns", "add", red, "--mode", "local")
    command.ok("netns", "add", gone, "--mode", "local")
    with Registry(command.directory, own_cid=lambda: None) as registry:
        registry.register_daemon("bridge")
        registry.claim(cookie(red), 42, "web")
        registry.claim(netns.own(), 42, "db")
        lost = registry.claim(cookie(gone), 42, "lost").netns
        command.ok("netns", "del", gone)
        found = listed(command)
        assert found[red] == {
            "name": red,
            "deleted": False,
            "cookie": cookie(red).cookie,
            "mode": "local",
            "child_mode": "local",
            "child_mode_locked": False,
            "own": False,
            "init": False,
            "vms": [{"name": "web", "cid": 42, "pid": os.getpid()}],
        }
        assert (found[plain]["mode"], found[plain]["vms"]) == ("global", [])
        # Its name is gone; the namespace is not, nor is its mode.
        assert (found[gone]["deleted"], found[gone]["mode"], found[gone]["cookie"]) == (True, "local", lost.cookie)
        own = found[None]
        assert (own["own"], own["cookie"], own["mode"]) == (True, netns.own().cookie, "global")
        text = command.ok("netns", "list")
    lines = {line[3:].split()[0]: line for line in text.splitlines()}
    assert lines[red].split() == [red, str(cookie(red).cookie), "local", "local", "1"]
    assert lines[f"({gone})"].split()[2:] == ["local", "local", "1"]
    assert [line for line in text.splitlines() if line.startswith("*")] == [lines["-"]]
    assert listed(command)[red]["vms"] == []


def test_pids_and_paths_are_namespaces_too(command: Command, names: Names) -> None:
    red = names.new("red")
    command.ok("netns", "add", red, "--mode", "local")
    assert command.ok("netns", "mode", f"/run/netns/{red}") == "local\n"
    with subprocess.Popen(
        [tool("nsenter"), f"--net=/run/netns/{red}", "sh", "-c", "echo; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert command.ok("netns", "mode", str(process.pid)) == "local\n"
        process.communicate(b"\n")


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("mode", "no-such-ns"), "there is no namespace no-such-ns"),
        (("child-mode", "no-such-ns", "local"), "there is no namespace no-such-ns"),
        (("child-mode", "LOCAL"), "there is no namespace LOCAL"),
        (("mode", "4123456789"), "there is no namespace of pid 4123456789"),
        (("mode", "/etc/passwd"), "is not a network namespace"),
        (("del", "no-such-ns"), "no network namespace 'no-such-ns'"),
        (("del", "../netns"), "no network namespace"),
        (("add", "a/b"), "not a usable name"),
        (("add", ".."), "not a usable name"),
        (("add", "1234"), "mistaken for a pid"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_makes_nothing(command: Command, args: tuple[str, ...], part: str) -> None:
    assert part in command.fails("netns", *args)
    assert args[1] not in netns.names()


def test_a_name_that_is_taken_is_refused(command: Command, names: Names) -> None:
    name = names.add()
    before = cookie(name)
    assert "exists already" in command.fails("netns", "add", name)
    assert cookie(name) == before


def test_many_made_at_once_are_all_there(command: Command, names: Names) -> None:
    wanted = [names.new(f"many{number}") for number in range(8)]
    command.ok("netns", "list")
    threads = [threading.Thread(target=command.run, args=("netns", "add", name, "--mode", "local")) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = listed(command)
    assert [found[name]["mode"] for name in wanted] == ["local"] * 8
    assert len({cookie(name) for name in wanted}) == 8


def test_the_mode_is_noted_before_the_name_can_be_found(command: Command, names: Names) -> None:
    from vhostvsock.registry import making
    from vhostvsock.registry.rules import Mode

    name = names.new()
    with Registry(command.directory) as registry:
        declared: list[bool] = []
        declare = registry.modes.declare_child

        def watched(parent: NetnsId, child: NetnsId, **rest: object) -> object:
            declared.append(os.path.lexists(f"/run/netns/{name}"))
            return declare(parent, child, **rest)  # type: ignore[arg-type]

        registry.modes.declare_child = watched  # type: ignore[method-assign, assignment]
        here = netns.own()
        making.create(registry, name, Mode.LOCAL)
        assert declared == [False]
        assert netns.own() == here


def test_output_that_nobody_reads_is_no_error(command: Command) -> None:
    line = f"{sys.executable} -m vhostvsock netns list | true"
    done = subprocess.run(["sh", "-c", line], env=command.env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
