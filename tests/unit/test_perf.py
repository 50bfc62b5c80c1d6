"""What a sample of a daemon shows, by its call chain."""

from __future__ import annotations

import pytest

from scripts.lib.perf import kind, samples

# As perf script prints it.
SCRIPT = """\
\tffffffff9ea1 _copy_from_iter ([kernel.kallsyms])
\tffffffff9eb2 unix_stream_sendmsg ([kernel.kallsyms])
\tffffffff9ec3 __x64_sys_sendmsg ([kernel.kallsyms])

\tffffffff9ed4 _raw_spin_unlock_irqrestore ([kernel.kallsyms])
\tffffffff9ed5 try_to_wake_up ([kernel.kallsyms])
\tffffffff9ed6 __x64_sys_write ([kernel.kallsyms])

\t7f00aa vhostvsock_native::virtio::queue::Queue::take (/x/lib_native.so)
"""


def test_samples_are_call_chains_with_the_innermost_function_first() -> None:
    assert [len(chain) for chain in samples(SCRIPT)] == [3, 3, 1]


def test_samples_of_the_example_belong_to_copying_waking_and_the_ring() -> None:
    assert [kind(chain) for chain in samples(SCRIPT)] == [
        "copying bytes, in the kernel",
        "waking the guest or an application",
        "user: virtio::queue::Queue::take",
    ]


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (
            ["finish_task_switch.isra.0 (k)", "schedule (k)", "__x64_sys_epoll_pwait (k)"],
            "going to sleep and waking up",
        ),
        (["unix_poll (k)", "do_epoll_wait (k)", "__x64_sys_epoll_pwait (k)"], "the rest of epoll_pwait"),
        (["do_syscall_64 ([kernel.kallsyms])"], "entering and leaving the kernel"),
    ],
)
def test_a_system_call_is_sleeping_or_the_rest_of_it(chain: list[str], expected: str) -> None:
    assert kind(chain) == expected
