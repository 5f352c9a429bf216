"""The device that a name stands for."""

from __future__ import annotations

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
    except RuntimeError as error:
        raise ValueError(f"device = {device!r} is not a device. Use 'auto', 'cpu', 'cuda' or 'cuda:1'.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device = {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices. "
            "Use device='auto' (the GPU where there is one, else the CPU) or 'cpu'; `sharpnb doctor` says more."
        )
    return chosen
