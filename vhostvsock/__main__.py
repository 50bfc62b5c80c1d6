"""`python -m vhostvsock`: the same as the command `vhostvsock`."""

import sys

from vhostvsock.cli import main

if __name__ == "__main__":
    sys.exit(main())
