"""A torch file is read without running any code in it, and only if it is whole."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import torch


def read(path: Path, device: str | torch.device = "cpu") -> Any:
    """Return what is in a torch file (``weights_only=True``).

    PyTorch writes a checksum with each tensor and does not look at it when it reads: a turned bit would go unnoticed.

    Raises:
        OSError: if there is no such file, or it may not be read.
        ValueError: if it is no torch file, is damaged, or needs code to be read.
    """
    with path.open("rb") as file:
        try:
            if zipfile.is_zipfile(file):  # files from before PyTorch 1.6 are none, and have no checksums
                _check(file)
            file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # a pickle, zip, system, runtime or end-of-file error, as the damage will have it
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ValueError(f"{path} is not read: {reason[:200]}. Only whole files of tensors are (weights_only=True; "
                             "a file with more could run code). Save model.state_dict() anew; the state of a run can "
                             "be deleted.") from error


def _check(file: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as archive:
        if broken := archive.testzip():
            raise ValueError(f"the checksum of its part {broken} is another. It is damaged, or was saved under "
                             "torch.serialization.set_crc32_options(False)")
