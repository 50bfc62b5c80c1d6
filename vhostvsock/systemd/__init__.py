"""What vhostvsock and systemd have to do with each other.

activation: sockets that systemd passes. notify, watchdog: what it is told. install: the units, which are in units/.
"""
