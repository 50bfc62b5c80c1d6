"""The bridge: one socket per daemon on which host applications name a CID and a port.

protocol -> server -> (native device | listeners | peers); clients find one by finding.py. Byte by byte: docs/bridge.md.
"""
