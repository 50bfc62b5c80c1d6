"""`vhostvsock exec`: a program whose AF_VSOCK sockets go over vhostvsock.

Before: cli/__init__.py. After: exec/supervisor.py.
"""

from __future__ import annotations

import argparse

from vhostvsock import log
from vhostvsock.exec import supervisor


def main(args: argparse.Namespace) -> int:
    log.setup(0)
    return supervisor.run([args.program, *args.arguments], dev_vsock=args.dev_vsock)
