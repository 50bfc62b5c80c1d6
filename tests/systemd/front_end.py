"""Just enough of QEMU's side of vhost-user to ask a device for its CID. Runs inside the container, by itself.

    front_end.py SOCKET          prints "cid N" and leaves
    front_end.py SOCKET --stay   prints "cid N", stays until the device closes the connection, prints "gone"

Rule: only the standard library, for it runs with whatever Python there is.
"""

import socket
import struct
import sys

LIMIT = 20.0
# Requests of the vhost-user protocol.
GET_FEATURES = 1
SET_OWNER = 3
GET_CONFIG = 24
VERSION = 1
CONFIG_BYTES = 8


def ask(sock: socket.socket, request: int, payload: bytes = b"") -> bytes:
    """Send a request, and return the payload of its reply."""
    sock.sendall(struct.pack("=III", request, VERSION, len(payload)) + payload)
    _, _, size = struct.unpack("=III", take(sock, 12))
    return take(sock, size)


def take(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            sys.exit("the device closed the connection")
        data += part
    return data


def main() -> None:
    path, *options = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(LIMIT)
        sock.connect(path)
        sock.sendall(struct.pack("=III", SET_OWNER, VERSION, 0))
        ask(sock, GET_FEATURES)
        reply = ask(sock, GET_CONFIG, struct.pack("=III", 0, CONFIG_BYTES, 0) + bytes(CONFIG_BYTES))
        print(f"cid {int.from_bytes(reply[12:], 'little')}", flush=True)
        if "--stay" in options:
            sock.settimeout(None)
            try:
                sock.recv(1)
            except ConnectionResetError:
                pass
            print("gone", flush=True)


if __name__ == "__main__":
    main()
