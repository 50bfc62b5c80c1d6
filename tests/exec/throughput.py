"""How fast a connection under `vhostvsock exec` is, beside a plain pair of UNIX sockets: both in one program.

    python tests/exec/throughput.py

Starts a daemon of its own and runs itself under `vhostvsock exec`. One process sends, another receives, by 64 KiB;
the best of five rounds of each counts.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIECE = 65536
TOTAL = 1 << 30
ROUNDS = 5
PORT = 5000


def gibibytes_per_second(sender: socket.socket, receiver: socket.socket) -> float:
    """The speed from one socket to another."""
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        receiver.close()
        piece = bytes(PIECE)
        for _ in range(TOTAL // PIECE):
            sender.sendall(piece)
        os._exit(0)
    sender.close()
    buffer = bytearray(PIECE)
    left = TOTAL
    while left:
        left -= receiver.recv_into(buffer, min(left, PIECE))
    seconds = time.perf_counter() - began
    receiver.close()
    os.waitpid(pid, 0)
    return TOTAL / seconds / (1 << 30)


def vsock_pair(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection over loopback."""
    client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    client.connect((1, PORT))
    return client, listener.accept()[0]


def measure() -> None:
    """Under `vhostvsock exec`."""
    best = {"a pair of UNIX sockets": 0.0, "AF_VSOCK under exec": 0.0}
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, PORT))
        listener.listen()
        for _ in range(ROUNDS):
            for name in best:
                pair = socket.socketpair() if name.startswith("a pair") else vsock_pair(listener)
                best[name] = max(best[name], gibibytes_per_second(*pair))
    for name, speed in best.items():
        print(f"{name}: {speed:.2f} GiB/s")


def main() -> int:
    if sys.argv[1:] == ["measure"]:
        measure()
        return 0
    command = [sys.executable, "-m", "vhostvsock"]
    with tempfile.TemporaryDirectory(prefix="vv-", dir="/tmp") as name:
        env = {**os.environ, "VHOSTVSOCK_RUNTIME_DIR": name}
        vm = ["--guest-cid", "42", "--socket", f"{name}/vh.sock", "--uds-path", f"{name}/v.sock"]
        with subprocess.Popen([*command, "run", *vm, "--no-parent"], env=env, stderr=subprocess.PIPE, text=True) as run:
            try:
                assert run.stderr is not None
                print(run.stderr.readline(), end="", file=sys.stderr)
                words = [*command, "exec", "--", sys.executable, str(Path(__file__).resolve()), "measure"]
                return subprocess.run(words, env=env, check=False).returncode
            finally:
                run.terminate()


if __name__ == "__main__":
    sys.exit(main())
