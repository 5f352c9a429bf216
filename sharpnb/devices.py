"""The device that a name stands for, and the name of a device."""

from __future__ import annotations

import platform
from typing import Any

import torch


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device that ``device`` names; ``"auto"`` is the GPU where there is one, else the CPU.

    Raises:
        ValueError: if the device is unknown or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type != "cuda":  # a GPU's memory is not touched before it is needed
            torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # no such word, no such hardware, no numbers
        reason = str(error).strip().splitlines()[0][:80]
        raise ValueError(f"device = {device!r} is not a device that computes here ({reason}). Use 'auto', 'cpu', "
                         "'cuda' or 'cuda:1'.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device = {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices."
                         " Use 'auto' (the GPU where there is one, else the CPU) or 'cpu'; see `sharpnb doctor`.")
    return chosen


def device_name(device: Any) -> str:
    """Return the GPU's model, or the kind of CPU."""
    on_gpu = getattr(device, "type", "cpu") == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else f"cpu ({platform.machine()})"
