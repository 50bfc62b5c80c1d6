"""Stops a single thread of a process, as a fault would that makes it hang, while all others run on.

    freeze.py PID NAME   stops the thread called NAME, prints "frozen", and ends with the process

Runs inside the container. A signal would stop the whole process: this is done with ptrace(2).
Rule: only the standard library, for it runs with whatever Python there is.
"""

import ctypes
import os
import sys

PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
WAIT_ALL = 0x40000000  # __WALL: threads too


def main() -> None:
    pid, name = sys.argv[1:]
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/comm") as file:
            if file.read().strip() == name:
                break
    else:
        sys.exit(f"process {pid} has no thread {name}")
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if ptrace(request, int(thread), None, None) != 0:
            sys.exit(os.strerror(ctypes.get_errno()))
    os.waitpid(int(thread), WAIT_ALL)
    print("frozen", flush=True)
    # Until it is gone: a tracer that left would let it go on.
    while True:
        _, status = os.waitpid(int(thread), WAIT_ALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            return


if __name__ == "__main__":
    main()
