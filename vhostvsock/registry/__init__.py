"""Who is in which network namespace, who holds which CID and port, and who may reach whom.

The path of a question: netns.py says in which namespace a socket was made; store.py looks up what all daemons of the
host have claimed; rules.py and routes.py, which know neither sockets nor storage, decide.

  rules.py       PURE: modes and their inheritance, domains, CIDs, ports
  routes.py      PURE: where a connect() goes, or the errno that it gets
  errors.py      refusals with Linux's errno, and the registry's own troubles
  netns.py       a namespace's identity (its cookie): of a socket, a name, a pid, a path
  privilege.py   who may change a namespace's settings
  kernel.py      the modes that a kernel with namespaces in AF_VSOCK keeps itself; the host's own CID
  mounts.py      where a name has to be mounted to be seen by everybody
  making.py      namespaces made and removed, with the mode that they inherit
  runtime.py     the runtime directory, and the lock that says that a daemon lives
  database.py    the SQLite file: opened, created, checked; its errors in plain words
  notes.py       what is known of each namespace, a small file each
  modes.py       the modes, as told by the kernel or as noted
  store.py       `Registry`: claims, listeners and modes, shared by all daemons
"""
