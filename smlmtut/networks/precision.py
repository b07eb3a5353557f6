"""Which number format pays on which hardware: float32, bf16 or fp16."""

import torch

from .._validate import choice

AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # precision: type of the convolutions
PRECISIONS = ("auto", *AUTOCAST)


def best_precision(device: torch.device) -> str:
    """ "bf16", "fp16" or "no": the autocast that pays on this hardware.

    bf16 on CPUs with matrix units for it (elsewhere it is emulated, ten times slower than float32) and on GPUs
    that have it; fp16, whose losses must be scaled, on older GPUs (T4); none on Apple's.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():  # no public question exists
        return "bf16"
    return "no"


def chosen_precision(precision: str, device: torch.device) -> str:
    """The precision by its name; of "auto", the one that pays on this device."""
    return best_precision(device) if choice("precision", precision, PRECISIONS) == "auto" else precision
