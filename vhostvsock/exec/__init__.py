"""AF_VSOCK for programs of this host, unchanged: `vhostvsock exec`.

The path of a program's call, file by file: child.py (the program and its filter) -> supervisor.py (the loop) ->
calls.py (which call it is) -> sockets.py (on which socket), connecting.py, listening.py -> asking.py -> the bridge.
"""
