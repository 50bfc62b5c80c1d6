"""Real guests for the demo and the VM tests.

In the order in which a test uses them: build.py (C programs) and image.py (the guest's initramfs), from what
scripts/lib/fetch.py has in the cache; daemon.py (vhostvsock, or the peer) and qemu.py (one QEMU, its QMP in qmp.py);
guest.py (commands in the guest) and probe.py (checked conversations on either side); machine.py has all of one VM.

Rules: - Nothing here sleeps and hopes: it waits for a condition, with a limit.
       - Whoever starts a process or makes a directory ends or removes it, also when the test fails.
       - Relative socket paths: every process runs in the VM's working directory, whose name is short.
"""
