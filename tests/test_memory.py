"""Batches that fit into a GPU's free memory: the rule by faked numbers, the bytes that it assumes by measurement."""

import pytest
import torch

from benchmarks.live_memory import LiveBytes, estimate_bytes, fit_bytes, peak_bytes, sample_bytes
from smlmtut import _memory
from smlmtut._memory import fitting, free_memory
from smlmtut.estimation import fit
from smlmtut.imaging.camera import Camera
from smlmtut.localize import samples
from smlmtut.networks import deepstorm, pretrained
from smlmtut.networks.cddpm import ConditionalDiffusion
from smlmtut.networks.deepstorm import DeepSTORM

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of which the driver has 4 GB free; PyTorch holds 3 GB, of which tensors take 1 GB."""
    for name, value in {"mem_get_info": (4_000, 16_000), "memory_reserved": 3_000, "memory_allocated": 1_000}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)


def test_free_memory_is_the_drivers_and_what_pytorch_holds_unused(gpu):
    assert free_memory(GPU) == 4_000 + 3_000 - 1_000
    assert free_memory(torch.device("cpu")) == free_memory(torch.device("mps")) == float("inf")


@pytest.mark.parametrize(("wanted", "each", "most"), [(10, 300.0, 10), (11, 300.0, 10), (100, 2_999, 1), (100, 1e9, 1)])
def test_a_batch_takes_half_of_the_free_memory_at_most(gpu, wanted, each, most):
    assert fitting(wanted, each, GPU) == most
    assert fitting(wanted, each, torch.device("cpu")) == wanted


def test_a_gpu_that_cannot_be_asked_is_named(monkeypatch):
    def refuse(device):
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    with pytest.raises(ValueError, match="device must be a GPU .*, got cuda:0: no driver"):
        fitting(3, 1.0, GPU)


def test_on_the_cpu_nobody_asks(monkeypatch):
    """Sizes on the CPU are the constants, so that what it computes stays the same to the last bit."""
    monkeypatch.setattr(_memory, "free_memory", lambda device: pytest.fail("asked"))
    seen = []
    evaluate = fit._evaluate
    monkeypatch.setattr(fit, "_evaluate", lambda theta, *more: seen.append(theta.shape[1]) or evaluate(theta, *more))
    fit.fit_spots(torch.poisson(torch.full((8193, 3, 3), 9.0), torch.Generator().manual_seed(0)), max_iterations=1)
    assert max(seen) == 8192
    network, sizes = DeepSTORM(channels=2, dilations=(1,), upsampled=(2, 2), predicting=1), []
    network.register_forward_hook(lambda layer, given, out: sizes.append(len(out)))
    deepstorm.estimate_kde(network, torch.ones(17, 16, 16), Camera())
    assert sizes == [16, 1]


def test_the_number_that_fits_is_the_number_computed_at_once(monkeypatch):
    """As on a small GPU: what `fitting` says is what the fit and the sampler take."""
    sizes, evaluate = [], fit._evaluate
    monkeypatch.setattr(fit, "_evaluate", lambda theta, *more: sizes.append(theta.shape[1]) or evaluate(theta, *more))
    monkeypatch.setattr(fit, "fitting", lambda n, each, device: 40)
    fit.fit_spots(torch.full((100, 5, 5), 9.0), max_iterations=1)
    assert max(sizes) == 40
    asked, chunks = [], []
    monkeypatch.setattr(samples, "fitting", lambda n, each, device: asked.append((n, each)) or 2 * 64 * 64)
    monkeypatch.setattr(samples, "sample_kde", lambda *_, chunk: chunks.append(chunk) or torch.zeros(3, 5, 64, 64))
    network = pretrained.load("cddpm-2d", kind=ConditionalDiffusion)
    samples.kde_sampler(network)(
        torch.ones(3, 1, 16, 16), torch.ones(3, 1, 16, 16), torch.zeros(3, 1, 64, 64), 5, torch.Generator()
    )
    assert chunks == [2] and asked == [(samples.DRAWN_AT_ONCE["cpu"], samples.DRAWN_BYTES)]


def test_the_watch_counts_what_is_alive():
    def work():
        a = torch.zeros(1000)  # 4 kB
        b = a + 1  # 8 kB alive
        a = b[:10]  # a view: nothing new, and the zeros are gone
        return torch.stack([a, a])  # 80 bytes more than 4 kB

    assert peak_bytes(work) == 8000
    with LiveBytes() as live:
        kept = work()
    assert live.now == kept.numel() * 4 == 80


@pytest.mark.parametrize("shape", [(3, 3), (7, 7), (11, 11), (15, 9)])
@pytest.mark.parametrize(("fit_sigma", "mapped"), [(False, False), (True, True)])
def test_a_spot_takes_no_more_than_is_assumed(monkeypatch, shape, fit_sigma, mapped):
    asked = []
    monkeypatch.setattr(fit, "fitting", lambda n, each, device: asked.append(each) or n)
    found = fit_bytes(shape, fit_sigma, mapped)
    assert found <= asked[0] <= 2.5 * found  # the lower end is the rule, the upper keeps it from being wasteful


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"channels": 12, "dilations": (1, 2, 1), "upsampled": (12, 8), "predicting": 1},
        {"channels": 128, "upsampled": (8, 4)},
        {"channels": 8, "upsampled": (8, 32)},
    ],
)
def test_a_camera_pixel_takes_no_more_than_is_assumed(architecture):
    network = DeepSTORM(**architecture)
    assert estimate_bytes(network) <= deepstorm._bytes_a_pixel(network) <= 2.5 * estimate_bytes(network)


@pytest.mark.parametrize("weights", ["cddpm-2d", "cddpm-2d-published"])
def test_a_diffused_pixel_takes_no_more_than_is_assumed(weights):
    found = sample_bytes(pretrained.load(weights, kind=ConditionalDiffusion)) / 64**2
    assert found <= samples.DRAWN_BYTES <= 2 * found
