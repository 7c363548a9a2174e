"""Memory of devices."""

from __future__ import annotations

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free
