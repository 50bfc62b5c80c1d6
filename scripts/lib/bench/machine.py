"""What the benchmark runs on, in one line.

Before: measure.py. After: /proc and uname.
"""

from __future__ import annotations

import os
import platform


def machine() -> str:
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}"
