"""AF_VSOCK sockets under `vhostvsock exec`: Linux's checks, errnos and names, one by one, as a program sees them."""

from __future__ import annotations

import sys

import pytest
from exec.conftest import PRELUDE, Supervised
from netns.tracing import failing
from netns.tracing import strace as strace


def test_an_af_vsock_socket_is_a_unix_socket_to_the_kernel(seccomp: None, supervised: Supervised) -> None:
    code = """
sock = new()
inode = os.readlink(f"/proc/self/fd/{sock.fileno()}").removeprefix("socket:[").removesuffix("]")
print(any(line.split()[6] == inode for line in open("/proc/net/unix").readlines()[1:]))
"""
    assert supervised.python(code) == ["True"]


def test_types_and_protocols_as_with_linux(supervised: Supervised) -> None:
    code = """
print(error(socket.socket, VSOCK, socket.SOCK_DGRAM), error(socket.socket, VSOCK, socket.SOCK_RAW))
print(*(error(socket.socket, VSOCK, kind, 7) for kind in (10, 11, 15)))
print(error(socket.socket, VSOCK, socket.SOCK_STREAM, 7), error(socket.socketpair, VSOCK))
sock = new()
print(sock.getsockopt(socket.SOL_SOCKET, 39) == VSOCK, sock.type == socket.SOCK_STREAM, sock.family == VSOCK)
print(fcntl.fcntl(sock, fcntl.F_GETFD) == fcntl.FD_CLOEXEC, os.get_blocking(sock.fileno()))
other = socket.socket(VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
print(os.get_blocking(other.fileno()))
"""
    assert supervised.python(code) == [
        "ENODEV ESOCKTNOSUPPORT",
        "EPROTONOSUPPORT EINVAL EINVAL",
        "EPROTONOSUPPORT ENOTSUP",
        "True True True",
        "True True",
        "False",
    ]


def test_a_socket_that_is_not_connected(supervised: Supervised) -> None:
    code = """
sock = new()
print(sock.getsockname() == (ANY, ANY), error(sock.getpeername), error(sock.listen), error(sock.accept))
print(so_error(sock), sock.getsockopt(socket.SOL_SOCKET, 30))
poll = select.poll(); poll.register(sock, select.POLLIN | select.POLLOUT)
print(poll.poll(0)[0][1] == select.POLLOUT)
"""
    assert supervised.python(code) == ["True ENOTCONN EINVAL EINVAL", "0 0", "True"]


def test_a_connection_to_a_guest_and_its_end(supervised: Supervised) -> None:
    code = """
sock = connected(42, 1234)
cid, port = sock.getsockname()
print(cid == ANY, port > 1023, sock.getpeername(), so_error(sock), error(sock.connect, (42, 1234)))
sock.sendall(b"x" * 300_000); sock.shutdown(socket.SHUT_WR)
print(len(b"".join(iter(lambda: sock.recv(65536), b""))), error(sock.send, b"x"))
"""
    assert supervised.python("signal.signal(signal.SIGPIPE, signal.SIG_IGN)\n" + code) == [
        "True True (42, 1234) 0 EISCONN",
        "300000 EPIPE",
    ]


def test_refusals_have_linuxs_errnos_and_leave_the_socket_for_another_attempt(supervised: Supervised) -> None:
    code = """
sock = new()
for address in (43, 1234), (42, 99), (0, 1), (1, 9), (2, 9), (ANY, 1):
    print(address[0], error(sock.connect, address), error(sock.getpeername))
sock.connect((42, 1234)); sock.send(b"hello"); print(sock.recv(10))
"""
    assert supervised.python(code) == [
        "43 ENODEV ENOTCONN",
        "42 ECONNRESET ENOTCONN",
        "0 ENODEV ENOTCONN",
        "1 ECONNRESET ENOTCONN",
        "2 ECONNRESET ENOTCONN",
        "4294967295 ENODEV ENOTCONN",
        "b'hello'",
    ]


def test_nobody_finds_errors_in_a_queue_and_nobody_waits_for_them(supervised: Supervised) -> None:
    # socat asks after a connect that was refused. To a UNIX socket it would be a read, which waits, or takes data.
    code = """
errors = lambda sock: error(sock.recvmsg, 10, 10, socket.MSG_ERRQUEUE)
sock = new(); print(error(sock.connect, (42, 99)), errors(sock))
sock.connect((42, 1234)); sock.send(b"hello"); select.select([sock], [], [], 10)
print(errors(sock), sock.recv(10))
server = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(server.getsockname())
print(errors(client))
"""
    assert supervised.python(code) == ["ECONNRESET EAGAIN", "EAGAIN b'hello'", "EAGAIN"]


def test_addresses_that_are_none(supervised: Supervised) -> None:
    code = """
libc = ctypes.CDLL(None, use_errno=True)
fd = (sock := new()).fileno()
def said(result): return "ok" if result == 0 else errno.errorcode[ctypes.get_errno()]
good = struct.pack("=HHIIB3x", VSOCK, 0, 5000, ANY, 0)
wrong = [good[:15], struct.pack("=H", socket.AF_INET) + good[2:], good[:12] + b"\\2" + good[13:]]
for call in libc.connect, libc.bind:
    print(*[said(call(fd, data, len(data))) for data in wrong], said(call(fd, good, -1)), said(call(fd, good, 129)),
          said(call(fd, ctypes.c_void_p(8), 16)))
room, size = ctypes.create_string_buffer(b"x" * 16, 16), ctypes.c_int(6)
print(said(libc.getsockname(fd, room, ctypes.byref(size))), room.raw[6:] == b"x" * 10, size.value)
print(said(libc.getsockname(fd, room, ctypes.c_void_p(8))), end=" ")
print(said(libc.getsockname(fd, room, ctypes.byref(ctypes.c_int(-1)))))
"""
    assert supervised.python(code) == [
        "EINVAL EINVAL EINVAL EINVAL EINVAL EFAULT",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EFAULT",
        "ok True 16",
        "EFAULT EINVAL",
    ]


def test_ports_are_bound_as_with_linux(supervised: Supervised) -> None:
    code = """
sock, other = new(), new()
print(error(sock.bind, (77, 5000)), error(sock.bind, (2, 5000)), error(sock.bind, (2, 5001)), sock.getsockname())
print(error(other.bind, (ANY, 5000)), error(other.bind, (1, 5000)))
chosen = new(); chosen.bind((ANY, ANY)); cid, port = chosen.getsockname(); print(cid == ANY, 1023 < port < ANY)
print(error(new().connect, (2, 5000)), error(new().connect, (1, 5000)))
"""
    assert supervised.python(code) == [
        "EADDRNOTAVAIL None EINVAL (2, 5000)",
        "EADDRINUSE None",
        "True True",
        "ECONNRESET ECONNRESET",
    ]


def test_a_port_is_free_when_its_socket_is_closed_and_when_its_process_ended(supervised: Supervised) -> None:
    code = """
for _ in range(10):
    listening(5000).close()
sock = listening(5000)
duplicate = sock.dup(); sock.close()
print(error(new().bind, (ANY, 5000))); duplicate.close(); print(error(new().bind, (ANY, 5000)))
if os.fork() == 0:
    listening(5001); os._exit(0)
os.wait(); print(error(new().bind, (ANY, 5001)))
"""
    assert supervised.python(code) == ["EADDRINUSE", "None", "None"]


def test_loopback_between_two_sockets_of_a_program(supervised: Supervised) -> None:
    code = """
server = listening(5000)
client = connected(1, 5000)
accepted, peer = server.accept()
print(peer == (1, client.getsockname()[1]), accepted.getsockname(), accepted.getpeername() == peer)
print(accepted.family == VSOCK, accepted.getsockopt(socket.SOL_SOCKET, 30), server.getsockopt(socket.SOL_SOCKET, 30))
client.send(b"hello"); print(accepted.recv(10)); accepted.close(); print(client.recv(10))
print(connected(2, 5000).getpeername())
"""
    assert supervised.python(code) == ["True (1, 5000) True", "True 0 1", "b'hello'", "b''", "(2, 5000)"]


def test_a_guest_connects_and_is_accepted_with_its_cid(supervised: Supervised) -> None:
    server = supervised.script("""
server = listening(5000); print("listening")
sock, peer = server.accept()
print(peer[0], peer == sock.getpeername(), sock.getsockname())
sock.send(sock.recv(100).upper())
""")
    server.wait("listening")
    supervised.guest.tell("connect 5000 hello")
    assert supervised.guest.next() == "reply HELLO"
    assert server.next() == "42 True (2, 5000)"


def test_a_backlog_of_n_takes_one_more(supervised: Supervised) -> None:
    code = """
server = listening(5000, backlog=1)
kept = [new() for _ in range(4)]
print([error(sock.connect, (1, 5000)) for sock in kept])
server.accept(); print(error(kept[3].connect, (1, 5000)))
server.listen(0); server.accept(); print(error(new().connect, (1, 5000)), error(server.bind, (ANY, 5001)))
"""
    assert supervised.python(code) == [
        "[None, None, 'ECONNRESET', 'ECONNRESET']",
        "None",
        "ECONNRESET EINVAL",
    ]


def test_options_of_af_vsock(supervised: Supervised) -> None:
    code = """
sock = plain(new())
size = lambda name: struct.unpack("=Q", sock.getsockopt(VSOCK, name, 8))[0]
print([size(name) for name in range(3)], struct.unpack("=qq", sock.getsockopt(VSOCK, 6, 16)))
sock.setsockopt(VSOCK, 0, struct.pack("=Q", 1 << 30)); print(size(0))
sock.setsockopt(VSOCK, 2, struct.pack("=Q", 1 << 30))
sock.setsockopt(VSOCK, 0, struct.pack("=Q", 1 << 20)); print(size(0))
print(error(sock.setsockopt, VSOCK, 0, b"1234"), error(sock.getsockopt, VSOCK, 0, 4), end=" ")
print(error(sock.getsockopt, VSOCK, 77, 8))
print(error(sock.setsockopt, VSOCK, 77, bytes(8)), error(sock.setsockopt, VSOCK, 8, struct.pack("=qq", -1, 0)))
sock.setsockopt(VSOCK, 8, struct.pack("=qq", 0, 500000)); print(struct.unpack("=qq", sock.getsockopt(VSOCK, 6, 16)))
print(error(sock.setsockopt, socket.SOL_SOCKET, 60, 1))
"""
    assert supervised.python(code) == [
        "[262144, 128, 262144] (2, 0)",
        "262144",
        "1048576",
        "EINVAL EINVAL ENOPROTOOPT",
        "ENOPROTOOPT ERANGE",
        "(0, 500000)",
        "ENOTSUP",
    ]


def test_other_sockets_are_as_they_were(supervised: Supervised) -> None:
    code = """
server = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(server.getsockname())
accepted, peer = server.accept()
print(peer == client.getsockname(), accepted.getpeername() == peer, client.getpeername() == server.getsockname())
one, two = socket.socketpair()
print(one.getsockopt(socket.SOL_SOCKET, 39) == socket.AF_UNIX, so_error(one), server.getsockopt(socket.SOL_SOCKET, 30))
late = socket.socket(); late.setblocking(False); late.connect_ex(server.getsockname())
print(select.select([], [late], [], 5)[1] == [late], so_error(late))
"""
    assert supervised.python(code) == ["True True True", "True 0 1", "True 0"]


def test_the_local_cid_is_the_hosts(supervised: Supervised) -> None:
    code = """
try: fd = os.open("/dev/vsock", os.O_RDONLY)
except OSError: print(2)
else: print(struct.unpack("=I", fcntl.ioctl(fd, 0x7B9, bytes(4)))[0])
with open("/dev/null") as file: print(error(fcntl.ioctl, file, 0x7B9, bytes(4)))
"""
    assert supervised.python(code) == ["2", "ENOTTY"]


def test_a_device_that_tells_the_local_cid_is_there_where_it_was_asked_for(supervised: Supervised) -> None:
    code = """
libc = ctypes.CDLL(None, use_errno=True)
class How(ctypes.Structure): _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]
how = How(os.O_RDONLY)
opened = [os.open("/dev/vsock", os.O_RDONLY), libc.syscall(437, -100, b"/dev/vsock", ctypes.byref(how), 24)]
if os.uname().machine == "x86_64": opened.append(libc.syscall(2, b"/dev/vsock", os.O_RDWR))
print({struct.unpack("=I", fcntl.ioctl(fd, 0x7B9, bytes(4)))[0] for fd in opened})
print([os.get_inheritable(fd) for fd in opened[:2]], error(os.write, opened[-1], b"x"))
with open("/dev/null") as file: print(error(fcntl.ioctl, file, 0x7B9, bytes(4)))
print(error(os.open, "/dev/vsock-not", os.O_RDONLY), error(fcntl.ioctl, os.memfd_create("x"), 0x7B9, bytes(4)))
"""
    done = supervised.run(sys.executable, "-c", PRELUDE + code, options=["--dev-vsock"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == ["{2}", "[False, True] EPERM", "ENOTTY", "ENOENT ENOTTY"]


@pytest.mark.usefixtures("strace")
def test_a_connect_for_which_there_is_no_thread_fails_and_may_be_tried_again(supervised: Supervised) -> None:
    program = supervised.script("""
waits, polls = new(), new(); polls.setblocking(False); print("ready")
for _ in sys.stdin:
    print(error(waits.connect, (42, 1234)), errno.errorcode[polls.connect_ex((42, 1234))], end=" ")
    print(select.select([], [polls], [], 10)[1] == [polls], so_error(polls))
""")
    program.wait("ready")
    with failing(program.popen.pid, "clone3", "EAGAIN", supervised.world.directory / "trace"):
        program.tell("")
        assert program.next() == "EAGAIN EINPROGRESS True 11"
    program.tell("")
    assert program.next() == "None EINPROGRESS True 0"
