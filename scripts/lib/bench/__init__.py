"""The benchmark: vhostvsock, vhost-device-vsock and the machine's own limit, row by row, run by run.

    __main__.py   the command line
    rows.py       which rows there are
    daemons.py    the contenders, and a daemon of one of them that runs
    driver.py     asks vsock-bench, which plays QEMU, guests and host applications, for a value
    standing.py   values that need no guest: the start, and memory
    measure.py    all rows, all contenders, run by run
    results.py    what came out: medians, spread, ratios; to a file and back
    tables.py     as Markdown
    plot.py       as a picture
    targets.py    what is to be reached, and whether it was
    page.py       docs/performance.md
    machine.py    what it ran on
    vm.py         the same through real guests

Rules:  - Contenders take turns within each row, so that whatever else the machine does hits all alike.
        - Each value comes from a fresh daemon.
        - A contender that hangs in a row is not asked for that row again: one answer is enough, and it takes seconds.
"""
