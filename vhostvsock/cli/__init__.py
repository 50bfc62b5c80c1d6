"""The command line: the parser, and which file does the work. No work here.

Before: the console script `vhostvsock`, or `python -m vhostvsock`. After: the file of the command, such as cli/run.py.
Rules:  - Exit codes: 0 fine, 1 failed, 2 wrong usage or configuration.
        - An error is one line, `vhostvsock: error: ...`, and mostly a second one, `hint: ...`; never a traceback.
        - Only the subcommand's own file is imported: `connect` starts at once, without the native part.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from vhostvsock.cli import connect_args, exec_args, listen_args, ls_args, netns_args, run_args, systemd_args
from vhostvsock.descriptors import keep_standard_numbers
from vhostvsock.errors import VhostvsockError
from vhostvsock.log import complain

_DESCRIPTION = """\
virtio-vsock for QEMU guests in user space. QEMU attaches over vhost-user; host applications reach guests, and guests
reach them, over UNIX sockets. Needs no kernel module and no root.
"""

_EPILOG = """\
exit codes:
  0  fine
  1  failed; one line on stderr says what, another how to mend it
  2  wrong usage or configuration

`vhostvsock COMMAND --help` has the details and examples of each command.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the usage in the same form as every other error."""

    def error(self, message: str) -> NoReturn:
        complain(message, f"see `{self.prog} --help`")
        raise SystemExit(2)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, *_: object) -> NoReturn:
        from vhostvsock import __version__

        print(f"vhostvsock {__version__}")
        raise SystemExit(0)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(
        prog="vhostvsock",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run_args.add(commands)
    connect_args.add(commands)
    listen_args.add(commands)
    exec_args.add(commands)
    ls_args.add(commands)
    netns_args.add(commands)
    systemd_args.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    keep_standard_numbers()
    args, unknown = parser().parse_known_args(argv)
    if unknown:
        # argparse itself would send the user to the help of `vhostvsock`, which lists no option.
        complain(f"unrecognized arguments: {' '.join(unknown)}", f"see `vhostvsock {args.command} --help`")
        raise SystemExit(2)
    try:
        # Only the file of the command is imported.
        command = importlib.import_module(f"vhostvsock.cli.{args.command}")
        return int(command.main(args))
    except VhostvsockError as error:
        complain(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Piped into `head`: what was asked for was said.
        from vhostvsock.cli.output import give_up

        give_up()
        return 1
    except OSError as error:
        complain(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
