"""Peak memory of the GPU in each chapter of profile full, from the tensors that are alive at once.

    python benchmarks/live_memory.py

No GPU is needed. Every operation of a computation is watched on the CPU, and the bytes of all tensors that are alive
are added up; a few images are computed, and the peak is multiplied up to the sizes of profile full. What is missing:
workspaces of cuDNN and cuBLAS, the CUDA context (some 0.5 GB together), and what PyTorch's allocator cannot use
between its blocks. The last line is the largest peak. `make gpu` measures instead of adding up.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smlmtut.estimation.fit import fit_spots
from smlmtut.networks import pretrained, recipes
from smlmtut.networks.cddpm import ConditionalDiffusion, DiffusionBatch, sample_kde, sampling_schedule
from smlmtut.networks.deepstorm import DeepSTORM

T4_GB = 14.0  # of the 15 that a T4 has, what tensors may take


class LiveBytes(TorchDispatchMode):
    """Inside the context, counts the bytes of the tensors that operations made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and id(storage := x.untyped_storage()) not in self.alive:
                self.alive.add(id(storage))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        return out

    def _forget(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def peak_bytes(work: Callable[[], Any]) -> int:
    """The largest number of bytes alive at once in tensors that work makes, its result among them."""
    with LiveBytes() as live:
        result = work()
    del result
    return live.peak


def fit_bytes(shape: tuple[int, int], fit_sigma: bool, mapped: bool, spots: int = 500) -> float:
    """Bytes a spot of `fit_spots`, float32; mapped: with a read variance of every pixel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.full((spots, *shape), 20.0), generator)
    variance = torch.ones_like(x) if mapped else 0.0
    return peak_bytes(lambda: fit_spots(x.clone(), 1.0, fit_sigma, variance, chunk=spots)) / spots


def estimate_bytes(network: DeepSTORM, size: int = 32) -> float:
    """Bytes a camera pixel of ŷ, without gradients."""
    x = torch.rand(2, 1, size, size)
    with torch.no_grad():
        return peak_bytes(lambda: network(x, 1.0)) / x.numel()


def sample_bytes(network: ConditionalDiffusion, images: int = 8) -> float:
    """Bytes an image of 64 × 64 that is diffused, each with a frame of its own."""
    generator, schedule = torch.Generator().manual_seed(0), sampling_schedule(2)
    draw = recipes.draw_estimates(recipes.reference_scene(), recipes.SMALL_FRAME, pretrained.load())
    batch = draw(images, generator)
    assert isinstance(batch, DiffusionBatch)
    frame = batch.frame if network.frame else None
    return peak_bytes(lambda: sample_kde(network, batch.estimate, 1, generator, frame, schedule, chunk=images)) / images


def training_bytes(recipe: recipes.Recipe) -> int:
    """Bytes of a step: the batch, the features, the gradients and the optimizer's moments."""
    network = recipe.network(recipe.settings.seed)

    def step() -> None:
        optimizer = torch.optim.AdamW(network.parameters())
        batch = recipe.draw(recipe.settings.batch, torch.Generator().manual_seed(0))
        recipe.loss(network, batch).backward()
        optimizer.step()

    return peak_bytes(step)


def computations() -> dict[str, tuple[str, Callable[[], float]]]:
    """What each chapter computes on the GPU in profile full: chapter, and the peak in bytes."""
    scene, phi = recipes.reference_scene(), pretrained.load()
    ours, published = (pretrained.load(f"cddpm-2d{x}", kind=ConditionalDiffusion) for x in ("", "-published"))
    small = DeepSTORM(channels=12, dilations=(1, 2, 1), upsampled=(12, 8), predicting=1)
    trained = partial(recipes.cddpm_2d, scene, phi)
    return {
        "fits of 200 000 spots of 11 × 11, five parameters": ("04", lambda: 200_000 * fit_bytes((11, 11), True, False)),
        "four small networks on 1000 frames of 24 × 24": (
            "05",
            lambda: 1000 * 24**2 * (estimate_bytes(small) + 4 * 64),
        ),
        "training DeepSTORM, batch 8": ("06", lambda: training_bytes(recipes.deepstorm_2d(scene))),
        "the held-out loss, 256 frames of 32 × 32": ("06", lambda: 256 * 32**2 * estimate_bytes(phi)),
        "ŷ at most 2²⁰ pixels at once": ("06", lambda: 2**20 * estimate_bytes(phi)),
        "training ours, batch 32": ("09", lambda: training_bytes(trained())),
        "training the published form, batch 32": ("09", lambda: training_bytes(trained(**recipes.PUBLISHED_FORM))),
        "1024 samples of ours at once": ("09", lambda: 1024 * sample_bytes(ours)),
        "1024 samples of the published form": ("09", lambda: 1024 * sample_bytes(published)),
    }


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| chapter | computation | peak (GB) |\n|---|---|---|")
    largest = 0.0
    for what, (chapter, peak) in computations().items():
        gigabytes = peak() / 1e9
        largest = max(largest, gigabytes)
        print(f"| {chapter} | {what} | {gigabytes:.2f} |", flush=True)
    print("| 01, 02, 03, 07, 08 | nothing: they compute on the CPU | 0 |")
    print(f"largest peak: {largest:.2f} GB of the {T4_GB:.0f} that a T4 has for tensors")


if __name__ == "__main__":
    main()
