"""What programs under `vhostvsock exec` do besides: fork, exec, pass descriptors, end in all ways."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import pytest
from conftest import lacking, tool
from exec.conftest import PRELUDE, Supervised
from netns.serving import LIMIT


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143), ("true", 0)],
)
def test_the_exit_code_is_the_programs(supervised: Supervised, script: str, code: int) -> None:
    assert supervised.run("sh", "-c", script).returncode == code


@pytest.mark.parametrize(
    ("word", "code", "why"),
    [("no-such-program", 127, "No such file or directory"), ("/etc/passwd", 126, "Permission denied")],
)
def test_a_program_that_cannot_be_run(supervised: Supervised, word: str, code: int, why: str) -> None:
    done = supervised.run(word)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.decode() == f"vhostvsock: error: cannot run {word}: {why}\n"


def test_exec_within_exec_is_refused_with_a_reason(supervised: Supervised) -> None:
    done = supervised.run(*supervised.words("true"))
    assert done.returncode == 126
    assert b"supervisor of that kind already" in done.stderr


def test_it_lasts_as_long_as_the_last_process(supervised: Supervised) -> None:
    code = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.5); sock = connected(42, 1234); sock.send(b"orphan"); os.write(1, sock.recv(10)); os._exit(0)
    os._exit(0)
os.wait(); os._exit(3)
"""
    done = supervised.run(sys.executable, "-c", PRELUDE + code)
    assert (done.returncode, done.stdout) == (3, b"orphan")


def test_a_signal_to_the_command_is_one_to_the_program(supervised: Supervised) -> None:
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGUSR1:
        program = supervised.script(f"""
signal.signal({int(number)}, lambda *_: (print("heard", flush=True), os._exit(5)))
print("ready", flush=True); connected(42, 1234).recv(1)
""")
        program.wait("ready")
        program.popen.send_signal(number)
        program.wait("heard")
        assert program.popen.wait(LIMIT) == 5


STRANGER = """
import os, signal, subprocess, sys
script = "sleep 1000 >&- 2>&- & echo $$ $!"
words = [sys.executable, "-m", "vhostvsock", "exec", "--", "sh", "-c", script]
command = subprocess.Popen(words, stdout=subprocess.PIPE)
program, left = map(int, command.stdout.readline().split())
while os.path.exists(f"/proc/{program}"): pass
with open("/proc/sys/kernel/ns_last_pid", "w") as last: last.write(str(program - 1))
stranger = os.fork()
if stranger == 0: signal.pause()
print(stranger == program)
command.send_signal(signal.SIGTERM); os.kill(left, signal.SIGKILL); command.wait()
print(os.waitpid(stranger, os.WNOHANG))
"""


def test_a_signal_to_the_command_does_not_go_to_a_stranger_with_the_programs_number(supervised: Supervised) -> None:
    if os.geteuid() != 0:
        lacking("root, for a namespace of numbers")
    unshare = [tool("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
    world = supervised.world
    done = subprocess.run(
        [*unshare, sys.executable, "-c", STRANGER],
        cwd=world.directory,
        env=world.env,
        capture_output=True,
        timeout=LIMIT,
    )
    assert done.stdout == b"True\n(0, 0)\n", done.stderr


def test_closing_means_closing(supervised: Supervised) -> None:
    code = """
server = listening(5000)
client = connected(1, 5000); accepted = server.accept()[0]
client.close(); print(accepted.recv(1))
accepted.close()
client = connected(1, 5000); accepted = server.accept()[0]
if os.fork() == 0: os.execvp("sleep", ["sleep", "1000"])  # without the socket: it is closed on exec
accepted.close(); print(client.recv(1))
os.kill(int(open(f"/proc/self/task/{os.getpid()}/children").read()), 9)
"""
    assert supervised.python(code) == ["b''", "b''"]


def test_sockets_are_inherited_duplicated_and_passed_on(supervised: Supervised) -> None:
    code = """
sock = new(); duplicate = socket.socket(fileno=os.dup(sock.fileno()))
duplicate.connect((42, 1234)); sock.send(b"1"); print(duplicate.recv(1), sock.getpeername())
one, two = socket.socketpair()
unconnected = new(); server = listening(5000)
if os.fork() == 0:
    _, fds, _, _ = socket.recv_fds(two, 1, 2)
    passed, listener = (socket.socket(fileno=fd) for fd in fds)
    passed.connect((42, 1234)); passed.send(b"2"); print(passed.recv(1), passed.getpeername(), flush=True)
    print(listener.accept()[0].recv(1), flush=True); os._exit(0)
socket.send_fds(one, [b"x"], [unconnected.fileno(), server.fileno()])
client = connected(1, 5000); client.send(b"3"); os.wait()
print(unconnected.getpeername())
"""
    assert supervised.python(code) == ["b'1' (42, 1234)", "b'2' (42, 1234)", "b'3'", "(42, 1234)"]


def test_a_call_is_about_the_socket_that_is_there_and_harms_no_other(supervised: Supervised) -> None:
    code = """
one, other = new(), new()
kept, number, stop, said = os.dup(one.fileno()), one.fileno(), False, set()
def swap():
    while not stop: os.dup2(other.fileno(), number); os.dup2(kept, number)
thread = threading.Thread(target=swap); thread.start()
libc = ctypes.CDLL(None, use_errno=True)
for _ in range(12000):
    libc.connect(number, b"xxx", 3); said.add(errno.errorcode[ctypes.get_errno()])
stop = True; thread.join()
poll = select.poll(); poll.register(kept, 0); poll.register(other, 0)
print(said, poll.poll(0))
"""
    assert supervised.python(code) == ["{'EINVAL'} []"]


def test_a_socket_goes_on_in_the_program_after_exec(supervised: Supervised) -> None:
    code = """
sock = new(); sock.set_inheritable(True)
os.execv(sys.executable, [sys.executable, "-c", f"import socket; s = socket.socket(fileno={sock.fileno()});"
    "s.connect((42, 1234)); s.send(b'x'); print(s.family == socket.AF_VSOCK, s.recv(1))"])
"""
    assert supervised.python(code) == ["True b'x'"]


def test_a_program_that_is_killed_in_a_call_harms_nobody(supervised: Supervised) -> None:
    supervised.guest.popen.send_signal(signal.SIGSTOP)
    code = """
def doomed(work):
    pid = os.fork()
    if pid == 0: work(); os._exit(0)
    time.sleep(0.2); os.kill(pid, 9); os.waitpid(pid, 0)
doomed(lambda: connected(42, 1234)); doomed(lambda: listening(5000).accept())
shared = listening(5001); doomed(lambda: shared.accept())
client = connected(1, 5001); client.send(b"x"); print(shared.accept()[0].recv(1))
print(error(new().bind, (ANY, 5000)))
"""
    assert supervised.python(code) == ["b'x'", "None"]


def test_without_its_supervisor_a_program_gets_errors_and_keeps_its_connections(supervised: Supervised) -> None:
    program = supervised.script("""
sock = connected(42, 1234); print("ready", os.getppid(), flush=True); sys.stdin.readline()
sock.send(b"still"); print(sock.recv(10), error(new), flush=True)
""")
    supervisor = int(program.wait("ready").split()[1])
    assert supervisor == program.popen.pid
    os.kill(supervisor, signal.SIGKILL)
    program.popen.wait(LIMIT)
    program.tell("go on")
    assert program.next() == "b'still' ENOSYS"


def test_a_thousand_connections_leave_nothing_behind(supervised: Supervised) -> None:
    program = supervised.script("""
server = listening(5000); sizes = []
for count in range(1500):
    sock = connected(1, 5000); accepted = server.accept()[0]; sock.close(); accepted.close()
    if count % 100 == 0: sizes.append(len(os.listdir(f"/proc/{os.getppid()}/fd")))
print("fds", sizes[1] == sizes[-1], sizes, flush=True); sys.stdin.readline()
""")
    assert program.wait("fds").split()[1] == "True"
    program.tell("")


def test_ports_below_1024_are_for_the_privileged(supervised: Supervised) -> None:
    code = "sock = new(); print(error(sock.bind, (ANY, 80)))"
    assert supervised.python(code) == (["None"] if os.geteuid() == 0 else ["EACCES"])
    if os.geteuid() == 0:
        # The supervisor may, the program may not.
        assert supervised.python("os.setresuid(65534, 65534, 65534)\n" + code) == ["EACCES"]
        # Of a process whose threads differ, the one that asks counts.
        code = f"""
def drop():
    numbers = {{"x86_64": 117, "aarch64": 147}}
    assert ctypes.CDLL(None).syscall(numbers[os.uname().machine], 65534, 65534, 65534) == 0
    {code}
thread = threading.Thread(target=drop); thread.start(); thread.join()
{code}
"""
        assert supervised.python(code) == ["EACCES", "None"]


def test_a_program_that_cannot_be_looked_into_is_left_alone(supervised: Supervised) -> None:
    # Root looks into everything by a capability, which is taken away for once.
    blind = ("setpriv", "--bounding-set=-sys_ptrace") if os.geteuid() == 0 else ()
    code = "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); print(error(new))"
    done = supervised.run(sys.executable, "-c", PRELUDE + code, before=blind)
    assert (done.returncode, done.stdout) == (0, b"EAFNOSUPPORT\n")
    assert b"warning: a program that cannot be looked into gets no AF_VSOCK sockets" in done.stderr


def test_calls_that_carry_data_are_not_intercepted(supervised: Supervised) -> None:
    program = supervised.script("""
sock = connected(42, 1234); print("ready", os.getppid(), flush=True); sys.stdin.readline()
for _ in range(100):
    sock.send(b"x" * 10); assert sock.recv(10) == b"x" * 10
    select.select([sock], [sock], [], 0)
sock.shutdown(socket.SHUT_WR); print(sock.recv(1), flush=True)
""")
    supervisor = int(program.wait("ready").split()[1])
    # Whoever does not need it is not held up by its not running.
    os.kill(supervisor, signal.SIGSTOP)
    try:
        program.tell("go on")
        assert program.next() == "b''"
    finally:
        os.kill(supervisor, signal.SIGCONT)


def test_a_crash_of_the_daemon_gives_the_port_to_its_successor(supervised: Supervised) -> None:
    server = supervised.script("""
server = listening(5000); print("listening", flush=True)
print(server.accept()[0].recv(1), flush=True)
""")
    server.wait("listening")
    supervised.daemon.end("kill")
    supervised.world.daemon({"b": 43})
    code = """
deadline = time.monotonic() + 10
sock = new()
while error(sock.connect, (1, 5000)) and time.monotonic() < deadline: time.sleep(0.1)
sock.send(b"x")
"""
    assert supervised.python(code) == []
    assert server.next() == "b'x'"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86's")
def test_code_for_32_bits_is_told_that_there_is_no_af_vsock(supervised: Supervised) -> None:
    code = """
import mmap
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)  # MAP_32BIT, rwx
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
def call(*registers):
    # push rbx; mov eax, ebx, ecx, edx; int 0x80; pop rbx; ret
    codes = 0xB8, 0xBB, 0xB9, 0xBA
    moves = b"".join(struct.pack("<BI", code, value) for code, value in zip(codes, registers))
    page[:64] = (b"\\x53" + moves + b"\\xcd\\x80\\x5b\\xc3").ljust(64)
    return errno.errorcode[-ctypes.CFUNCTYPE(ctypes.c_int)(at)()]
page[64:76] = struct.pack("<III", VSOCK, socket.SOCK_STREAM, 0)
print(call(359, VSOCK, socket.SOCK_STREAM, 0), call(102, 1, at + 64, 0))
page[64:76] = struct.pack("<III", socket.AF_UNIX, 9, 0)
print(call(102, 1, at + 64, 0))
"""
    done = supervised.run(sys.executable, "-c", PRELUDE + code)
    if done.returncode == 128 + signal.SIGSEGV:
        pytest.skip("this kernel runs no code for 32 bits")
    assert (done.returncode, done.stdout) == (0, b"EAFNOSUPPORT EAFNOSUPPORT\nESOCKTNOSUPPORT\n"), done
