"""What waits under `vhostvsock exec`: blocking and non-blocking calls, poll and epoll, time limits, signals."""

from __future__ import annotations

import signal

from exec.conftest import Supervised


def test_a_connect_that_does_not_wait_is_seen_by_poll_when_it_is_done(supervised: Supervised) -> None:
    code = """
for how in "epoll", "poll", "select":
    sock = new(); sock.setblocking(False)
    ready = select.epoll(); ready.register(sock, select.EPOLLOUT | select.EPOLLET); ready.poll(0)
    print(errno.errorcode[sock.connect_ex((42, 1234))], end=" ")
    if how == "epoll": print(ready.poll(10)[0][1] == select.EPOLLOUT, end=" ")
    elif how == "select": print(select.select([], [sock], [], 10)[1] == [sock], end=" ")
    else:
        poll = select.poll(); poll.register(sock, select.POLLOUT)
        print(poll.poll(10000)[0][1] == select.POLLOUT, end=" ")
    print(so_error(sock), sock.getpeername(), error(sock.recv, 10))
    sock.send(b"hello"); sock.setblocking(True); print(sock.recv(10))
"""
    lines = ["EINPROGRESS True 0 (42, 1234) EAGAIN", "b'hello'"]
    assert supervised.python(code) == lines * 3


def test_a_connect_that_does_not_wait_tells_its_failure_once(supervised: Supervised) -> None:
    code = """
sock = new(); sock.setblocking(False)
for address in (42, 99), (43, 1), (1, 9):
    print(errno.errorcode[sock.connect_ex(address)], select.select([], [sock], [], 10)[1] == [sock], end=" ")
    print(errno.errorcode[so_error(sock)], so_error(sock), error(sock.getpeername))
print(errno.errorcode[sock.connect_ex((42, 1234))], select.select([], [sock], [], 10)[1] == [sock], so_error(sock))
sock.send(b"hello"); sock.setblocking(True); print(sock.recv(10))
"""
    assert supervised.python(code) == [
        "EINPROGRESS True ECONNRESET 0 ENOTCONN",
        "EINPROGRESS True ENODEV 0 ENOTCONN",
        "EINPROGRESS True ECONNRESET 0 ENOTCONN",
        "EINPROGRESS True 0",
        "b'hello'",
    ]


def test_a_guest_that_does_not_answer_costs_the_time_that_was_asked_for(supervised: Supervised) -> None:
    supervised.guest.popen.send_signal(signal.SIGSTOP)
    code = """
sock = new(); plain(sock).setsockopt(VSOCK, 6, struct.pack("=qq", 0, 300000))
began = time.monotonic(); print(error(sock.connect, (42, 1234)), 0.3 <= time.monotonic() - began)
sock.setblocking(False)
print(errno.errorcode[sock.connect_ex((42, 1234))], errno.errorcode[sock.connect_ex((42, 1234))], so_error(sock))
print(select.select([], [sock], [], 0.1)[1], error(sock.getpeername), error(sock.send, b"x"))
print(select.select([], [sock], [], 10)[1] == [sock], errno.errorcode[so_error(sock)])
"""
    assert supervised.python(code) == [
        "ETIMEDOUT True",
        "EINPROGRESS EALREADY 0",
        "[] ENOTCONN EAGAIN",
        "True ETIMEDOUT",
    ]


def test_accept_waits_or_not_and_a_listening_socket_polls_as_one(supervised: Supervised) -> None:
    code = """
server = listening(5000); server.setblocking(False)
ready = select.epoll(); ready.register(server, select.EPOLLIN)
print(error(server.accept), ready.poll(0))
first, second = connected(1, 5000), connected(1, 5000)
print(ready.poll(10)[0][1] == select.EPOLLIN)
one = server.accept()[0]; print(ready.poll(10)[0][1] == select.EPOLLIN, os.get_blocking(one.fileno()))
two = server.accept()[0]; print(ready.poll(0), error(server.accept))
first.send(b"1"); second.send(b"2"); print(one.recv(1), two.recv(1))
server.setblocking(True)
plain(server).setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 0, 200000))
began = time.monotonic(); print(error(server.accept), 0.2 <= time.monotonic() - began)
"""
    assert supervised.python(code) == [
        "EAGAIN []",
        "True",
        "True True",
        "[] EAGAIN",
        "b'1' b'2'",
        "EAGAIN True",
    ]


def test_accept4_gives_the_flags_that_were_asked_for(supervised: Supervised) -> None:
    code = """
libc = ctypes.CDLL(None, use_errno=True)
server = listening(5000)
for flags in 0, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC:
    client = connected(1, 5000)
    fd = libc.accept4(server.fileno(), None, None, flags)
    print(os.get_blocking(fd), os.get_inheritable(fd))
print(libc.accept4(server.fileno(), None, None, 1), errno.errorcode[ctypes.get_errno()])
"""
    assert supervised.python(code) == ["True True", "False True", "True False", "-1 EINVAL"]


def test_threads_that_wait_in_accept_have_a_connection_each(supervised: Supervised) -> None:
    code = """
server = listening(5000, backlog=64)
said = []
def serve():
    for _ in range(5):
        sock, _ = server.accept(); said.append(sock.recv(1)); sock.close()
threads = [threading.Thread(target=serve) for _ in range(8)]
for thread in threads: thread.start()
for _ in range(40):
    sock = connected(1, 5000); sock.send(b"x"); sock.recv(1)
for thread in threads: thread.join()
print(len(said), set(said))
"""
    assert supervised.python(code) == ["40 {b'x'}"]


def test_a_signal_interrupts_accept_and_connect_and_nothing_is_lost(supervised: Supervised) -> None:
    code = """
class Interrupted(Exception): pass
def interrupt(*_): raise Interrupted
signal.signal(signal.SIGALRM, interrupt)
server = listening(5000)
for _ in range(3):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try: server.accept(); print("accepted")
    except Interrupted: pass
client = connected(1, 5000); client.send(b"x"); print(server.accept()[0].recv(1))
# With a handler that returns, accept goes on by itself.
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
def later():
    time.sleep(0.5); kept.append(connected(1, 5000)); kept[0].send(b"y")
kept = []; thread = threading.Thread(target=later); thread.start()
print(server.accept()[0].recv(1)); thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    assert supervised.python(code) == ["b'x'", "b'y'"]


def test_a_listening_socket_is_not_readable_any_more_once_the_last_connection_was_accepted(
    supervised: Supervised,
) -> None:
    code = """
server = listening(5000); poll = select.poll(); poll.register(server, select.POLLIN)
stale = 0
for _ in range(200):
    client = connected(1, 5000); poll.poll(10000)
    server.accept()[0].close(); stale += len(poll.poll(0)); client.close()
print(stale)
"""
    assert supervised.python(code) == ["0"]


def test_a_call_that_a_signal_interrupts_succeeds_when_it_is_made_again(supervised: Supervised) -> None:
    # The alarm comes once in each call, ever later, and so also in the moment in which the call's work ends.
    code = """
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, False)
def alarmed(function, *args):
    signal.setitimer(signal.ITIMER_REAL, next(delays)); said.add((function.__name__, error(function, *args)))
    signal.setitimer(signal.ITIMER_REAL, 0)
delays, said = (0.0002 + number % 40 * 0.0001 for number in range(10 ** 9)), set()
for number in range(400):
    server, client, late = new(), new(), new()
    alarmed(server.bind, (ANY, 5000 + number)); server.listen()
    alarmed(client.connect, (1, 5000 + number))
    late.setblocking(False)
    signal.setitimer(signal.ITIMER_REAL, next(delays)); said.add(("late", errno.errorcode[late.connect_ex((42, 1234))]))
    select.select([], [late], []); said.add(("decided", so_error(late)))
    signal.setitimer(signal.ITIMER_REAL, 0)
    for sock in server, client, late: sock.close()
print(*sorted(said, key=str))
"""
    assert supervised.python(code) == ["('bind', None) ('connect', None) ('decided', 0) ('late', 'EINPROGRESS')"]


def test_what_a_signal_interrupted_is_not_taken_for_a_call_with_another_address(supervised: Supervised) -> None:
    prelude = """
class Interrupted(Exception): pass
def interrupt(*_): raise Interrupted
signal.signal(signal.SIGALRM, interrupt)
def interrupted(seconds, function, *args):
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: error(function, *args); signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted: return True
server = listening(5000)
"""
    # The alarm comes at ever another moment of the call.
    code = """
said = set()
for number in range(100):
    delay = 0.0002 + number % 50 * 0.0001
    sock, other = new(), new()
    if interrupted(delay, sock.connect, (42, 1234)): said.add(("connect", error(sock.connect, (77, 1))))
    if interrupted(delay, other.bind, (ANY, 6000 + 2 * number)):
        result = error(other.bind, (ANY, 6001 + 2 * number))
        said.add(("bind", result, other.getsockname()[1] == 6001 + 2 * number))
    sock.close(); other.close()
wrong = said - {("connect", "EISCONN"), ("connect", "ENODEV"), ("bind", "EINVAL", False), ("bind", None, True)}
print(len(said) > 1, wrong)
"""
    assert supervised.python(prelude + code) == ["True set()"]
    supervised.guest.popen.send_signal(signal.SIGSTOP)
    code = """
sock = new()
print(interrupted(0.3, sock.connect, (42, 1234)), error(sock.connect, (1, 5000)), sock.getpeername())
"""
    assert supervised.python(prelude + code) == ["True None (1, 5000)"]


def test_guests_that_do_not_answer_hold_up_no_other_call(supervised: Supervised) -> None:
    supervised.guest.popen.send_signal(signal.SIGSTOP)
    code = """
waiting = []
for _ in range(100):
    sock = new(); plain(sock).setsockopt(VSOCK, 6, struct.pack("=qq", 15, 0)); sock.setblocking(False)
    sock.connect_ex((42, 1234)); waiting.append(sock)
server = listening(5000); client = connected(1, 5000)
print(server.accept()[1][0], select.select([], waiting, [], 0)[1])
"""
    assert supervised.python(code) == ["1 []"]
