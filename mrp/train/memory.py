"""How much memory a training takes, as measured.

gpu_memory()        # {"gpu": "NVIDIA ...", "gpu_memory_mib": {"allocated": 2410, "reserved": 2690, "in_all": 3450}}
"""

from __future__ import annotations

from typing import Any

import torch

from mrp.report import resident_gib


def gpu_memory() -> dict[str, Any]:
    """For the record: the GPU, and the most memory that torch has held there; nothing without one."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    most, now = torch.cuda.max_memory_reserved(), torch.cuda.memory_reserved()
    found = {"allocated": torch.cuda.max_memory_allocated(), "reserved": most, "in_all": total - free - now + most}
    return {"gpu": torch.cuda.get_device_name(), "gpu_memory_mib": {k: round(v / 2**20) for k, v in found.items()}}


def memory_text() -> str:
    """Memory in use, to be shown while training: the GPU's where there is one."""
    if torch.cuda.is_available():
        return f"{torch.cuda.memory_reserved() / 2**30:.1f} GiB GPU"
    return f"{resident_gib():.1f} GiB"
