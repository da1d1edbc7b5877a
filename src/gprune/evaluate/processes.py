"""This process among those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import torch
from accelerate import Accelerator


def accelerator() -> Accelerator:
    """Of this process; on CPUs processes find each other only if accelerate is told that there are no GPUs."""
    return Accelerator(cpu=not torch.cuda.is_available())


def default_device() -> str | None:
    """Of this process; None, for the first GPU or the CPU, if it is the only one."""
    own = accelerator()
    return str(own.device) if own.num_processes > 1 else None


def is_first() -> bool:
    """Whether this process is the first, or the only one."""
    return bool(accelerator().is_main_process)
