"""Sockets that were bound before they connect, and the sizes that programs set: what the other end sees of them."""

from __future__ import annotations

from exec.conftest import Supervised

# For scripts: what the guest says of a connection, and SO_VM_SOCKETS_BUFFER_SIZE.
SEEN = """
def seen(sock): return sock.makefile("rb").readline().decode().split()
def set_size(sock, size, option=0): plain(sock).setsockopt(VSOCK, option, struct.pack("=Q", size))
def size(sock): return struct.unpack("=Q", plain(sock).getsockopt(VSOCK, 0, 8))[0]
"""


def test_the_guest_sees_the_port_that_was_bound_and_so_does_getsockname(supervised: Supervised) -> None:
    code = """
for cid, port in (ANY, 5555), (2, 5556), (1, 5557), (ANY, ANY):
    sock = bound(port, cid); name = sock.getsockname()
    sock.connect((42, 1235))
    print(seen(sock)[0] == str(name[1]), name[1] == port or port == ANY, sock.getsockname() == name, name[0] == cid)
    sock.send(b"hello"); print(sock.recv(10))
late = bound(5558); late.setblocking(False)
print(errno.errorcode[late.connect_ex((42, 1235))], select.select([], [late], [], 10)[1] == [late], so_error(late))
late.setblocking(True); print(seen(late)[0], late.getsockname()[1])
messages = bound(5559, kind=socket.SOCK_SEQPACKET)
print(error(messages.connect, (42, 1235)), messages.getsockname()[1])
"""
    assert supervised.python(SEEN + code) == [
        *["True True True True", "b'hello'"] * 4,
        "EINPROGRESS True 0",
        "5558 5558",
        "ECONNRESET 5559",
    ]


def test_a_socket_that_was_refused_tries_again_from_the_same_port(supervised: Supervised) -> None:
    code = """
sock = bound(5555)
print(*[error(sock.connect, address) for address in ((42, 99), (43, 1), (1, 9))], error(new().bind, (ANY, 5555)))
sock.connect((42, 1235)); print(seen(sock)[0])
"""
    assert supervised.python(SEEN + code) == ["ECONNRESET ENODEV ECONNRESET EADDRINUSE", "5555"]


def test_a_port_is_bound_for_as_long_as_its_connection_lives(supervised: Supervised) -> None:
    code = """
def free(port):
    "Once the daemon knows of the end."
    while error(new().bind, (ANY, port)) == "EADDRINUSE": time.sleep(0.01)
    return True
for end in socket.socket.close, lambda sock: sock.shutdown(socket.SHUT_WR):
    sock = bound(5555); sock.connect((42, 1235)); seen(sock)
    print(error(new().bind, (ANY, 5555)), error(new().connect, (2, 5555)))
    other = sock.dup(); sock.close(); other.send(b"hello"); print(other.recv(10), error(new().bind, (ANY, 5555)))
    end(other); print(free(5555))
sock = bound(5555); sock.connect((42, 1235)); print(seen(sock)[0])
"""
    assert supervised.python(SEEN + code) == [
        *["EADDRINUSE ECONNRESET", "b'hello' EADDRINUSE", "True"] * 2,
        "5555",
    ]


def test_loopback_shows_the_port_that_was_bound(supervised: Supervised) -> None:
    code = """
for kind in socket.SOCK_STREAM, socket.SOCK_SEQPACKET:
    server = bound(5000, kind=kind); server.listen()
    client = bound(5555 + kind, kind=kind); client.connect((1, 5000))
    accepted, peer = server.accept()
    print(peer == (1, 5555 + kind) == accepted.getpeername(), client.getsockname() == (ANY, 5555 + kind))
    client.send(b"hello"); print(accepted.recv(10)); server.close()
"""
    assert supervised.python(code) == ["True True", "b'hello'"] * 2


def test_the_guest_is_told_the_size_that_was_set_before_connect(supervised: Supervised) -> None:
    code = """
for wanted in None, 4096, 127, 1 << 20:
    sock = new()
    if wanted is not None: set_size(sock, wanted)
    sock.connect((42, 1235)); print(seen(sock)[1], size(sock))
small, large, odd = new(), new(), new()
set_size(small, 1, 1); set_size(small, 1)
set_size(large, 1 << 20, 2); set_size(large, 1 << 20)
set_size(odd, 8192, 2)
for sock in small, large, odd:
    sock.connect((42, 1235)); print(seen(sock)[1], size(sock))
set_size(odd, 4096); odd.send(b"hello"); print(size(odd), odd.recv(10))
"""
    assert supervised.python(SEEN + code) == [
        "262144 262144",
        "4096 4096",
        "128 128",
        "262144 262144",
        "128 1",
        "262144 1048576",
        "8192 8192",
        "4096 b'hello'",
    ]


def test_a_megabyte_comes_back_through_small_windows(supervised: Supervised) -> None:
    code = """
data = os.urandom(1 << 20)
for wanted in 128, 4096:
    sock = new(); set_size(sock, wanted); sock.connect((42, 1234))
    def send(): sock.sendall(data); sock.shutdown(socket.SHUT_WR)
    thread = threading.Thread(target=send); thread.start()
    print(b"".join(iter(lambda: sock.recv(65536), b"")) == data); thread.join()
"""
    assert supervised.python(SEEN + code) == ["True", "True"]


def test_guests_that_connect_are_told_the_size_of_the_listening_socket_at_the_time(supervised: Supervised) -> None:
    server = supervised.script(
        SEEN
        + """
server = bound(5000); set_size(server, 4096); server.listen(); print("listening")
for wanted in 8192, 1000, None:
    sock, _ = server.accept(); print(size(sock)); sock.sendall(sock.recv(10)); sock.close()
    if wanted: set_size(server, wanted); print("set")
"""
    )
    server.wait("listening")
    for size in (4096, 8192, 1000):
        supervised.guest.tell("window 5000 hello")
        assert [supervised.guest.next(), supervised.guest.next()] == [f"window {size}", "reply hello"]
        assert server.next() == str(size)
        if size != 1000:
            server.wait("set")
