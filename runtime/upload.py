"""Numbers of the host on the device that trains, without the host waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def uploaded(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """`numbers` on a device, in the order of its current stream. One number for all entries: rather `torch.full`.

    `torch.tensor(…, device=…)` waits for all that the stream has to do, and a copy from pageable memory may; one from
    pinned memory does not. Torch keeps the pinned memory until the copy is done.
    Source: CUDA Runtime API, "API synchronization behavior"; torch, "CUDA semantics", "Use pinned memory buffers".
    """
    on_host = torch.from_numpy(numbers)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host.to(device)
