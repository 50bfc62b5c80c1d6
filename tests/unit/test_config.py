"""The configuration: what is accepted, and that each mistake is named by file, VM and key."""

import datetime
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from vhostvsock import config
from vhostvsock.errors import ConfigError
from vhostvsock.ids import Cid


def load(text: str) -> config.DaemonConfig:
    return config.from_toml(text.encode(), source="f.toml")


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.exit_code == 2
    return str(caught.value)


def vm(**keys: Any) -> str:
    table = {"name": "web", "cid": 42, "socket": "/run/a", "uds_path": "/run/b"} | keys
    lines = []
    for key, value in table.items():
        if value is not None:
            lines.append(f"{key} = {value!r}".replace("True", "true"))
    return "[[vm]]\n" + "\n".join(lines) + "\n"


def test_a_file_with_two_vms() -> None:
    found = load(
        vm(socket_mode="0660", socket_owner="0:0", uds_mode="0666")
        + vm(name="db", cid=43, socket="/run/c", uds_path="/run/d")
    )
    web, db = found.vms
    assert (web.name, web.cid, web.socket, web.uds_path) == ("web", Cid(42), "/run/a", "/run/b")
    assert web.socket_access == config.Access(0o660, 0, 0)
    assert web.uds_access == config.Access(0o666, 0, 0)
    assert db.socket_access == config.Access(0o600)
    assert found.handshake_timeout == 5.0


def test_a_vm_has_bounds_also_where_none_are_given() -> None:
    (given,) = load(vm(max_connections=5, buf_alloc=8192)).vms
    assert (given.max_connections, given.buf_alloc) == (5, 8192)
    (default,) = load(vm()).vms
    assert (default.max_connections, default.buf_alloc) == (16384, 262144)


def test_front_ends_that_reconnect_are_expected_where_the_file_says_so() -> None:
    assert not load(vm()).vms[0].reconnect
    assert load(vm(reconnect=True)).vms[0].reconnect
    assert "reconnect must be true or false, not a number" in refused(vm(reconnect=1))


def test_the_name_defaults_to_the_cid() -> None:
    assert load(vm(name=None)).vms[0].name == "cid42"


def test_relative_paths_start_at_the_directory_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(vm(socket="a", uds_path="b"))
    assert config.from_file(str(file)).vms[0].socket == str(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vm = 3", ["f.toml", "vm"]),
        ("vm = [1]", ["f.toml", "vm"]),
        ("", ["f.toml", "no VM"]),
        ("a = 1\n" + vm(), ["f.toml", "unknown key 'a'"]),
        ("handshake_timeout = 0\n" + vm(), ["f.toml: handshake_timeout", "range"]),
        ("handshake_timeout = nan\n" + vm(), ["f.toml: handshake_timeout", "range"]),
        ("handshake_timeout = '5'\n" + vm(), ["f.toml: handshake_timeout"]),
        (vm(cdi=3), ["f.toml", "'web'", "unknown key 'cdi'"]),
        (vm(cid="42"), ["f.toml", "'web'", 'cid must be a number or "auto"']),
        (vm(cid=True), ["f.toml", "'web'", 'cid must be a number or "auto", not true or false']),
        (vm(cid=42.0), ["'web'", "cid must be"]),
        (vm(poll_us=1001), ["'web'", "poll_us: 1001 is out of range"]),
        (vm(poll_us=-1), ["poll_us: -1"]),
        (vm(max_connections=0), ["'web'", "max_connections: 0 is out of range"]),
        (vm(max_connections=(1 << 20) + 1), ["max_connections: 1048577"]),
        (vm(max_connections=True), ["max_connections must be a number"]),
        (vm(buf_alloc=4095), ["'web'", "buf_alloc: 4095 is out of range"]),
        (vm(buf_alloc=(16 << 20) + 1), ["buf_alloc: 16777217"]),
        (vm(cid=2), ["'web'", "cid", "reserved"]),
        (vm(cid=1 << 32), ["'web'", "cid", "32 bits"]),
        (vm(cid=None), ["'web'", "cid is missing"]),
        (vm(socket=None), ["'web'", "socket is missing"]),
        (vm(uds_path=None), ["'web'", "uds_path is missing"]),
        (vm(name=None, socket=""), ["vm number 1", "socket is empty"]),
        (vm(name=""), ["name"]),
        (vm(name="../x"), ["name", "'../x'"]),
        (vm(socket="/run/x/"), ["socket"]),
        (vm(socket_mode="rw"), ["socket_mode", "'rw'"]),
        (vm(socket_mode="0888"), ["socket_mode"]),
        (vm(socket_mode=432), ["socket_mode must be text"]),
        (vm(socket_owner=""), ["socket_owner"]),
        (vm(socket_owner="root:"), ["socket_owner"]),
        (vm(socket_owner="no-such-user-here"), ["socket_owner", "no user 'no-such-user-here'"]),
        (vm(uds_owner=":no-such-group-here"), ["uds_owner", "no group 'no-such-group-here'"]),
        (vm(uds_owner="99999999999"), ["uds_owner"]),
        (vm() + vm(cid=43, socket="/run/c", uds_path="/run/d"), ["two VMs have the name 'web'"]),
        (vm() + vm(name="b", cid=43, uds_path="/run/d"), ["'b'", "socket '/run/a'", "'web'"]),
        (vm() + vm(name="b", cid=43, socket="/run/c"), ["'b'", "uds_path '/run/b'", "'web'"]),
        (vm() + vm(name="b", cid=43, socket="/run/../run/b", uds_path="/run/d"), ["'b'", "already the uds_path"]),
        (vm(uds_path="/run/a"), ["'web'", "/run/a"]),
        (vm(uds_path="/run/a.lock"), ["lock"]),
        (vm() + vm(name="b", cid=43, socket="/run/b_1234", uds_path="/run/d"), ["'b'", "guest of vm 'web'"]),
        ("vm = [", ["f.toml", "not valid TOML"]),
        ("handshake_timeout = " + "1" * 5000 + "\n" + vm(), ["f.toml", "not valid TOML"]),
        (vm().replace("'/run/a'", '"/run/a\\nb"'), ["'web'", "control character"]),
        (vm().replace("'/run/b'", '"/run/\\u001b[2J"'), ["'web'", "control character"]),
    ],
)
def test_a_mistake_is_named(text: str, parts: list[str]) -> None:
    message = refused(text)
    for part in parts:
        assert part in message
    assert "\n" not in message


def test_a_path_is_limited_by_sun_path_and_uds_path_by_its_longest_suffix_too() -> None:
    assert load(vm(socket="/" + "s" * 106)).vms
    assert "107" in refused(vm(socket="/" + "s" * 107))
    longest = "/" + "u" * 95
    assert load(vm(uds_path=longest)).vms
    assert len(longest + "_4294967295") == 107
    assert "limit is 96" in refused(vm(uds_path=longest + "u"))


def test_the_limit_counts_bytes_and_not_characters() -> None:
    assert "bytes long" in refused(vm(socket="/" + "ü" * 54))


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml"):
        config.from_file(str(tmp_path / "none.toml"))
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.from_file(str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"cid": "two"}, "--guest-cid: CID 'two' is not a number"),
        ({"cid": "2"}, "--guest-cid"),
        ({"socket": ""}, "--socket is empty"),
        ({"uds_path": "u" * 97}, "--uds-path"),
        ({"socket_mode": "9"}, "--socket-mode"),
        ({"socket_owner": ":"}, "--socket-owner"),
        ({"handshake_timeout": -1.0}, "--handshake-timeout"),
        ({"uds_path": "a"}, "already the socket"),
        ({"max_connections": 0}, "--max-connections: 0 is out of range"),
        ({"buf_alloc": 1}, "--buf-alloc: 1 is out of range"),
    ],
)
def test_a_mistake_in_flags_is_named_by_its_flag(flags: dict[str, Any], part: str) -> None:
    given: dict[str, Any] = {"name": None, "cid": "42", "socket": "a", "uds_path": "b"}
    with pytest.raises(ConfigError) as caught:
        config.from_flags(**(given | flags))
    assert part in str(caught.value)


_toml_values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.dates() | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=6,
)


def _to_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_to_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_to_toml('k' + str(i))} = {_to_toml(v)}" for i, v in enumerate(value.values())) + "}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)


def _lines(table: dict[str, Any]) -> str:
    return "".join(f"{key} = {_to_toml(value)}\n" for key, value in table.items())


# What is right.
_MODES, _OWNERS = st.sampled_from(["0600", "777"]), st.sampled_from(["0", "0:0", ":0"])
_NAMES = st.text("abc.-_0", max_size=20)
_VM_VALUES = {
    "name": st.sampled_from("abcdefghijkl"),
    "cid": st.integers(3, (1 << 32) - 2) | st.just("auto"),
    "socket": _NAMES.map("/run/s".__add__),
    "uds_path": _NAMES.map("/run/u".__add__),
    "socket_mode": _MODES,
    "socket_owner": _OWNERS,
    "uds_mode": _MODES,
    "uds_owner": _OWNERS,
    "poll_us": st.integers(0, 1000),
    "max_connections": st.integers(1, 1 << 20),
    "buf_alloc": st.integers(4096, 16 << 20),
    "reconnect": st.booleans(),
}
_TOP_VALUES = {
    "handshake_timeout": st.floats(0.001, 3600) | st.integers(1, 3600),
    "runtime_dir": _NAMES.map("/run/r".__add__),
    "bridge_mode": _MODES,
    "bridge_owner": _OWNERS,
    "parent": st.booleans(),
}
# Keys, and values that are right for another key, or for none.
_EDGES = st.sampled_from(
    [
        *(-1, 0, 1, 2, 1001, 4095, (1 << 20) + 1, (16 << 20) + 1, 1 << 32, (1 << 32) - 1, 0.0, 3601, True, "", "0888"),
        *("/run/u_1", "/run/u.lock", "/run/s/../u", "n" * 65, "/" + "u" * 96, "/" + "s" * 107, "\u00fc" * 60),
        *("x:", "4294967295"),
    ]
)


def _tables(right: dict[str, st.SearchStrategy[Any]], *required: str) -> st.SearchStrategy[dict[str, Any]]:
    """What is right, and in one of three tables something that may be not."""
    rest = {key: value for key, value in right.items() if key not in required}
    good = st.fixed_dictionaries({key: right[key] for key in required}, optional=rest)
    wrong = st.dictionaries(st.sampled_from([*right, "other", "vm"]), _EDGES | _toml_values, min_size=1, max_size=2)
    return st.tuples(good, st.one_of(st.just({}), st.just({}), wrong)).map(lambda both: both[0] | both[1])


_DOCUMENTS = st.tuples(
    _tables(_TOP_VALUES), st.lists(_tables(_VM_VALUES, "cid", "socket", "uds_path"), min_size=1, max_size=3)
).map(lambda it: _lines(it[0]) + "".join("[[vm]]\n" + _lines(table) for table in it[1]))


def read(*texts: bytes) -> config.DaemonConfig | None:
    """The configuration in a file and its drop-ins, within bounds; None if there is a reason, which names one."""
    try:
        found = config._from_files([(f"f{number}.toml", text) for number, text in enumerate(texts)], base="")
    except ConfigError as error:
        assert re.match(r"f\d\.toml: .", str(error))
        assert str(error).isprintable()
        assert error.hint is None or error.hint
        return None
    assert 0.001 <= found.handshake_timeout <= 3600
    assert isinstance(found.parent, bool)
    for one in found.vms:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}", one.name)
        assert one.cid is None or 3 <= one.cid.value < 0xFFFF_FFFF
        assert 0 < len(os.fsencode(one.socket)) <= 107
        assert 0 < len(os.fsencode(one.uds_path)) <= 96
        assert 0 <= one.poll_us <= 1000
        assert 1 <= one.max_connections <= 1 << 20
        assert 4096 <= one.buf_alloc <= 16 << 20
        assert isinstance(one.reconnect, bool)
    for access in (
        found.bridge_access,
        *(access for one in found.vms for access in (one.socket_access, one.uds_access)),
    ):
        assert 0 <= access.mode <= 0o777
        assert all(number is None or 0 <= number < 0xFFFF_FFFF for number in (access.uid, access.gid))
    assert len({one.name for one in found.vms}) == len(found.vms)
    assert len({path for one in found.vms for path in (one.socket, one.uds_path)}) == 2 * len(found.vms)
    return found


@settings(max_examples=200)
@given(st.lists(_DOCUMENTS, min_size=1, max_size=2))
def test_any_toml_is_either_a_configuration_or_a_config_error(texts: list[str]) -> None:
    event(f"accepted: {read(*(text.encode() for text in texts)) is not None}")


@given(
    st.lists(
        st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        min_size=1,
        max_size=2,
    )
)
def test_any_bytes_are_either_a_configuration_or_a_config_error(texts: list[bytes]) -> None:
    assert read(*texts) is None


@given(_DOCUMENTS, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=8)), max_size=3))
def test_a_file_with_slips_is_either_a_configuration_or_a_config_error(
    text: str, slips: list[tuple[float, int, bytes]]
) -> None:
    data = bytearray(text.encode())
    for part, length, instead in slips:
        at = int(len(data) * part)
        data[at : at + length] = instead
    read(bytes(data))


@pytest.mark.parametrize("where", ["", "a\\u0000b", "a\\nb"])
def test_a_runtime_dir_is_a_directory(where: str) -> None:
    assert "f.toml: runtime_dir" in refused(f'runtime_dir = "{where}"\n' + vm())
    with pytest.raises(ConfigError, match="--runtime-dir"):
        config.from_flags(
            name=None, cid="42", socket="a", uds_path="b", runtime_dir=where.encode().decode("unicode_escape")
        )


def test_the_modes_of_a_vms_sockets_do_not_open_the_bridge() -> None:
    flags: dict[str, Any] = {"name": None, "cid": "42", "socket": "a", "uds_path": "b", "socket_mode": "0666"}
    assert config.from_flags(**flags).bridge_access.mode == 0o600
    assert config.from_flags(**flags, bridge_mode="0660").bridge_access.mode == 0o660
    with pytest.raises(ConfigError, match="--bridge-mode"):
        config.from_flags(**flags, bridge_mode="all")
