"""Sockets for messages (SOCK_SEQPACKET) under `vhostvsock exec`: Linux's rules and errnos, as a program sees them."""

from __future__ import annotations

import signal

from exec.conftest import Supervised


def test_a_connection_to_a_guest_carries_messages_up_to_the_longest(supervised: Supervised) -> None:
    code = """
sock = connected(42, 1236, SEQ)
print(sock.getsockname()[0] == ANY, sock.getpeername(), sock.type == SEQ, error(sock.connect, (42, 1236)))
messages = [b"1", b"22" * 1000, b"x" * 65537, b"x" * 262144, b"last"]
for message in messages: sock.send(message)
print([sock.recv(1 << 20) == message for message in messages], error(sock.send, b"x" * 262145))
sock.shutdown(socket.SHUT_WR); print(sock.recv(10), error(sock.send, b"x"))
"""
    assert supervised.python("signal.signal(signal.SIGPIPE, signal.SIG_IGN)\n" + code) == [
        "True (42, 1236) True EISCONN",
        "[True, True, True, True, True] EMSGSIZE",
        "b'' EPIPE",
    ]


def test_a_guest_connects_and_its_messages_are_the_programs(supervised: Supervised) -> None:
    server = supervised.script("""
server = listening(5000, kind=SEQ); streams = listening(5001); print("listening")
sock, peer = server.accept()
print(peer[0], peer == sock.getpeername(), sock.getsockname(), sock.type == SEQ)
while message := sock.recv(100): sock.send(message.upper())
print(error(sock.send, b"x" * 262145)); sock.close()
server.accept(); print("again")
""")
    server.wait("listening")
    supervised.guest.tell("messages 5000 one two")
    assert supervised.guest.next() == "reply ONE TWO"
    assert [server.next(), server.next()] == ["42 True (2, 5000) True", "EMSGSIZE"]
    # Types have to match for guests, too.
    for wrong in ("connect 5000 hello", "messages 5001 hello", "messages 5002 hello"):
        supervised.guest.tell(wrong)
        assert supervised.guest.next() == "error Reset"
    supervised.guest.tell("messages 5000 more")
    assert server.next() == "again"


def test_refusals_have_linuxs_errnos_and_leave_the_socket_for_another_attempt(supervised: Supervised) -> None:
    code = """
sock = new(SEQ)
for address in (43, 1236), (ANY, 1), (42, 99), (42, 1234), (0, 1), (1, 9), (2, 9):
    print(address[0], error(sock.connect, address), error(sock.getpeername))
sock.connect((42, 1236)); sock.send(b"hello"); print(sock.recv(10))
sock = new(SEQ); sock.setblocking(False)
print(errno.errorcode[sock.connect_ex((43, 1))], select.select([], [sock], [], 10)[1] == [sock], end=" ")
print(errno.errorcode[so_error(sock)], so_error(sock))
"""
    assert supervised.python(code) == [
        "43 ESOCKTNOSUPPORT ENOTCONN",
        "4294967295 ESOCKTNOSUPPORT ENOTCONN",
        "42 ECONNRESET ENOTCONN",
        "42 ECONNRESET ENOTCONN",
        "0 ENODEV ENOTCONN",
        "1 ECONNRESET ENOTCONN",
        "2 ECONNRESET ENOTCONN",
        "b'hello'",
        "EINPROGRESS True ESOCKTNOSUPPORT 0",
    ]


def test_a_guest_that_does_not_answer_costs_the_time_that_was_asked_for(supervised: Supervised) -> None:
    supervised.guest.popen.send_signal(signal.SIGSTOP)
    code = """
sock = new(SEQ); plain(sock).setsockopt(VSOCK, 6, struct.pack("=qq", 0, 300000))
began = time.monotonic(); print(error(sock.connect, (42, 1236)), 0.3 <= time.monotonic() - began)
"""
    assert supervised.python(code) == ["ETIMEDOUT True"]


def test_what_came_before_a_vm_died_can_be_read_and_the_vm_is_gone(supervised: Supervised) -> None:
    program = supervised.script("""
sock = connected(42, 1236, SEQ); sock.send(b"one"); sock.send(b"two")
print(sock.recv(10), sock.recv(10, socket.MSG_PEEK))
poll = select.poll(); poll.register(sock, select.POLLRDHUP)
print(poll.poll(10000) != [], sock.recv(10), sock.recv(10))
while (said := error(new(SEQ).connect, (42, 1236))) == "EHOSTUNREACH": pass
print(said)
""")
    assert program.next() == "b'one' b'two'"
    supervised.guest.end("kill")
    assert [program.next(), program.next()] == ["True b'two' b''", "ESOCKTNOSUPPORT"]


def test_both_types_share_the_ports_and_a_backlog_of_n_takes_one_more(supervised: Supervised) -> None:
    code = """
server = listening(5000, backlog=1, kind=SEQ); stream = listening(5001)
print(error(new().bind, (ANY, 5000)), error(new(SEQ).bind, (ANY, 5001)))
print([error(sock.connect, (1, 5000)) for sock in [new(SEQ) for _ in range(3)]])
server.accept(); print(error(new(SEQ).connect, (1, 5000)))
"""
    assert supervised.python(code) == ["EADDRINUSE EADDRINUSE", "[None, None, 'ECONNRESET']", "None"]


def test_messages_keep_their_boundaries_over_loopback_and_types_do_not_mix(supervised: Supervised) -> None:
    code = """
server = listening(5000, kind=SEQ)
print(error(new().connect, (1, 5000)))
client = new(SEQ); client.setblocking(False)
print(errno.errorcode[client.connect_ex((1, 5000))], end=" ")
print(select.select([], [client], [], 10)[1] == [client], so_error(client))
accepted, peer = server.accept(); print(peer[0], accepted.type == SEQ)
client.send(b"one"); client.send(b"two" * 1000); print(accepted.recv(10), len(accepted.recv(10000)))
accepted.send(b"three"); client.setblocking(True); print(client.recv(2), error(client.recv, 10, socket.MSG_DONTWAIT))
"""
    assert supervised.python(code) == [
        "ECONNRESET",
        "EINPROGRESS True 0",
        "1 True",
        "b'one' 3000",
        "b'th' EAGAIN",
    ]


def test_a_connect_in_progress_takes_no_message_however_small_the_send_buffer(supervised: Supervised) -> None:
    supervised.guest.popen.send_signal(signal.SIGSTOP)
    code = """
for size in 1, 5000, 20000, 1 << 20:
    sock = new(SEQ); plain(sock).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size); sock.setblocking(False)
    print(error(sock.connect, (42, 1236)), select.select([], [sock], [], 0)[1], error(sock.send, b"x"))
"""
    assert supervised.python(code) == ["EINPROGRESS [] EAGAIN"] * 4
