"""The bridge: one socket per daemon on which host applications name a CID and a port.

protocol -> server -> (native device | listeners | peers). The byte-by-byte description is docs/bridge.md.
"""
