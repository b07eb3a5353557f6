"""The number format that is fastest on each hardware: float32, bf16 or fp16."""

import torch

from .._validate import choice

AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # name of a precision: type of convolutions
PRECISIONS = ("auto", *AUTOCAST)


def best_precision(device: torch.device) -> str:
    """ "bf16", "fp16" or "no": the autocast that is fastest on this hardware.

    bf16 on CPUs with instructions for it (elsewhere it is emulated, ten times slower than float32) and on GPUs
    that have it; fp16, which needs a scaled loss, on older GPUs (T4); none on Apple's.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "no"


def cpu_has_bf16() -> bool:
    """Whether the CPU has AVX512 instructions for bf16; False, the safe answer, where torch cannot tell.

    torch has no public function for it in every version that we support (the public `get_capabilities` is newer).
    """
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())


def chosen_precision(precision: str, device: torch.device) -> str:
    """The named precision; for "auto", the one that is fastest on this device."""
    return best_precision(device) if choice("precision", precision, PRECISIONS) == "auto" else precision
