"""Tensors in safetensors files: written with the system's errors, and looked at when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: it cannot be written; safetensors itself says so by an error of its own.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def unfit_tensors(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Which of these tensors cannot be weights, in words; None if all can be."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            return f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, floating-point numbers are expected"
        # Not every narrow type has the operation itself.
        if not torch.isfinite(tensor.double()).all():
            return f"{name} holds numbers that are not finite"
    return None
