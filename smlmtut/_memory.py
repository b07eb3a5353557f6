"""How much of a batch fits into the memory of a GPU that other work may share."""

import torch

SHARE = 0.5  # of the free memory that one batch may take: the other half is for the libraries' workspaces and the rest


def free_memory(device: torch.device) -> float:
    """Bytes that new tensors can take on a CUDA device: what the driver has, and what PyTorch holds unused of it.

    Infinite on other devices, of which torch does not tell. Raises ValueError where CUDA cannot say.
    """
    if device.type != "cuda":
        return float("inf")
    try:
        free, _ = torch.cuda.mem_get_info(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device must be a GPU that can be asked for its free memory, got {device}: {error}"
        ) from error
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fitting(wanted: int, each: float, device: torch.device) -> int:
    """The number wanted, or on a CUDA device as many as take SHARE of the free memory, but 1 at least.

    each: bytes that one of them takes while it is computed. On other devices, the CPU among them, always the number
    wanted: what a CPU computes must not depend on what else runs there.
    """
    return wanted if device.type != "cuda" else max(1, min(wanted, int(SHARE * free_memory(device) / each)))
