"""Programs that know AF_VSOCK, as they come: ncat, socat, nbdkit, a statically linked one, one in Go; both roles."""

from __future__ import annotations

import hashlib
import os

from conftest import tool
from exec.conftest import CID, ECHO, Supervised
from netns.serving import LIMIT, Lines


def told(guest: Lines, line: str) -> str:
    """What a guest says that connects to a program, which has its port and perhaps does not listen yet."""
    answer = "error Reset"
    while answer == "error Reset":
        guest.tell(line)
        answer = guest.next()
    return answer


# The commands of the announcements -----------------------------------------------------------------------------------


def test_nc_from_a_shell_as_it_was_announced(supervised: Supervised, path_with_nc: str) -> None:
    script = """
nc --vsock -l 1234 > got & server=$!
until echo hello | nc --vsock 1 1234 2>/dev/null; do sleep 0.1; done
wait $server; cat got
"""
    assert supervised.ok("env", f"PATH={path_with_nc}", "bash", "-c", script) == b"hello\n"


def test_ncat_into_a_guest(supervised: Supervised) -> None:
    # ncat ends with its input, so that has to last until the answer is there.
    script = f"(echo hello; sleep 1) | {tool('ncat')} --vsock {CID} {ECHO}"
    assert supervised.ok("sh", "-c", script) == b"hello\n"


def test_ncat_that_listens_for_a_guest(supervised: Supervised) -> None:
    server = supervised.start(tool("ncat"), "--vsock", "-l", "1235")
    supervised.until_bound(1235)
    # It ends with what it hears, so that an answer may be lost on its side.
    assert told(supervised.guest, "connect 1235 hello").startswith("reply")
    assert server.wait("hello") == "hello"
    assert server.popen.wait(LIMIT) == 0


def test_ncat_says_what_is_wrong(supervised: Supervised) -> None:
    done = supervised.run(tool("ncat"), "--vsock", "43", "1")
    assert (done.returncode, done.stderr) == (1, b"Ncat: No such device.\n")


# socat ---------------------------------------------------------------------------------------------------------------


def test_socat_in_both_roles(supervised: Supervised) -> None:
    socat = tool("socat")
    data = os.urandom(300_000)
    assert supervised.ok(socat, "-t30", "-", f"VSOCK-CONNECT:{CID}:{ECHO}", data=data) == data
    supervised.start(socat, "VSOCK-LISTEN:1236,fork", "SYSTEM:sha256sum")
    supervised.until_bound(1236)
    for _ in range(3):
        answer = supervised.ok(socat, "-t30", "-", "VSOCK-CONNECT:1:1236", data=data)
        assert answer.split()[0].decode() == hashlib.sha256(data).hexdigest()
    supervised.guest.tell("connect 1236 hello")
    assert supervised.guest.next() == "reply " + hashlib.sha256(b"hello").hexdigest() + "  -"


# nbdkit --------------------------------------------------------------------------------------------------------------


def test_nbdkit_serves_a_disk(supervised: Supervised) -> None:
    image = supervised.world.directory / "disk"
    image.write_bytes(os.urandom(16 << 20))
    supervised.start(tool("nbdkit"), "--foreground", "--exit-with-parent", "--vsock", "--port", "10809", "file", "disk")
    supervised.until_bound(10809)
    code = """
sock = connected(2, 10809)
def get(count):
    data = bytearray()
    while len(data) < count: data += sock.recv(count - len(data)) or sys.exit("it ended")
    return bytes(data)
assert get(18) == b"NBDMAGICIHAVEOPT" + b"\\0\\3"
sock.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
size, _ = struct.unpack(">QH", get(10))
import hashlib
total = hashlib.sha256()
for at in range(0, size, 1 << 20):
    sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, at, at, 1 << 20))
    assert struct.unpack(">IIQ", get(16)) == (0x67446698, 0, at)
    total.update(get(1 << 20))
sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
print(size, total.hexdigest())
"""
    assert supervised.python(code) == [f"{16 << 20} {hashlib.sha256(image.read_bytes()).hexdigest()}"]


# Without a C library, or with one of its own -------------------------------------------------------------------------


def test_a_statically_linked_program_in_both_roles(supervised: Supervised, static_program: str) -> None:
    data = os.urandom(300_000)
    assert supervised.ok(static_program, "cat", f"vsock:{CID}:{ECHO}", data=data).endswith(data)
    server = supervised.start(static_program, "talk", "vsock-listen:1238", "recv=1:3000000", "eof", "send=2:3000000")
    server.wait("listening")
    supervised.ok(static_program, "talk", "vsock:1:1238", "send=1:3000000", "shutdown", "recv=2:3000000", "eof")
    assert server.popen.wait(LIMIT) == 0
    server = supervised.start(static_program, "echo", "vsock-listen:1238")
    server.wait("listening")
    for text in "one", "two":
        supervised.guest.tell(f"connect 1238 {text}")
        assert supervised.guest.next() == f"reply {text}"


def test_a_go_program_in_both_roles(supervised: Supervised, go_program: str) -> None:
    data = os.urandom(300_000)
    assert supervised.ok(go_program, "connect", str(CID), str(ECHO), data=data) == data
    server = supervised.start(go_program, "listen", "1237")
    server.wait("listening")
    assert supervised.ok(go_program, "connect", "1", "1237", data=b"hello") == b"hello"
    assert server.popen.wait(LIMIT) == 0
    server = supervised.start(go_program, "listen", "1237")
    server.wait("listening")
    supervised.guest.tell("connect 1237 hello")
    assert supervised.guest.next() == "reply hello"
    refused = supervised.run(go_program, "connect", str(CID), "99")
    assert (refused.returncode, refused.stdout) == (1, b"connect connection reset by peer\n")
