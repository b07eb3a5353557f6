"""Every public function that takes tensors, on a device that is not the CPU: the same numbers, in the right place."""

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fake_device import NAME, apart, unavailable
from packaging.version import Version
from torch import Tensor

from tools.run_chapters import ROOT

# -- the device is as strict as CUDA -------------------------------------------------------------------------
MIXED = "Expected all tensors to be on the same device"
GENERATOR = "Expected a '.*' device type for generator but found '.*'"


def on(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=NAME)


def here(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def number(value: float, device: str = "cpu") -> Tensor:
    return torch.tensor(value, device=device)


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a sum": (lambda: on(1, 2) + here(1, 2), RuntimeError, MIXED),
    "a sum, the CPU first": (lambda: here(1, 2) + on(1, 2), RuntimeError, MIXED),
    "a number of the device and a tensor of the CPU": (lambda: here(1, 2) * number(2, NAME), RuntimeError, MIXED),
    "a product of matrices": (lambda: on(1, 2) @ here(1, 2), RuntimeError, MIXED),
    "in place": (lambda: on(1, 2).add_(here(1, 2)), RuntimeError, MIXED),
    "in place on the CPU": (lambda: here(1, 2).add_(on(1, 2)), RuntimeError, MIXED),
    "in place on a number of the CPU": (lambda: number(1.0).add_(number(1.0, NAME)), RuntimeError, MIXED),
    "a result on the CPU": (lambda: torch.add(on(1, 2), on(1, 2), out=torch.empty(2)), RuntimeError, MIXED),
    "a choice": (lambda: torch.where(on(1, 2) > 1, here(1, 2), on(1, 2)), RuntimeError, MIXED),
    "joined": (lambda: torch.cat([on(1), here(1)]), RuntimeError, MIXED),
    "stacked with a number of the CPU": (lambda: torch.stack([number(1.0), number(1.0, NAME)]), RuntimeError, MIXED),
    "a CPU tensor at places of the device": (lambda: here(1, 2)[on(0, 1).long()], RuntimeError, MIXED),
    "a CPU tensor under a mask of the device": (lambda: here(1, 2)[on(0, 1) > 0], RuntimeError, MIXED),
    "values of the CPU": (lambda: on(1, 2).__setitem__(on(0, 1).long(), here(1, 2)), RuntimeError, MIXED),
    "set on the CPU": (lambda: here(1, 2).__setitem__(on(0, 1).long(), 3.0), RuntimeError, MIXED),
    "weights on the CPU": (lambda: torch.nn.Linear(2, 2)(on(1, 2)), RuntimeError, MIXED),
    "numpy": (lambda: on(1).numpy(), TypeError, "Use Tensor.cpu"),
    "an array": (lambda: np.asarray(on(1)), TypeError, "Use Tensor.cpu"),
    "a function of numpy": (lambda: np.sqrt(on(1)), TypeError, "Use Tensor.cpu"),
    "dice of the CPU": (lambda: torch.rand(2, generator=torch.Generator(), device=NAME), RuntimeError, GENERATOR),
    "dice of the device": (lambda: torch.rand(2, generator=torch.Generator(NAME)), RuntimeError, GENERATOR),
    "the CPU's own dice": (
        lambda: torch.rand(2, generator=torch.default_generator, device=NAME), RuntimeError, GENERATOR,
    ),
    "noise by dice of the CPU": (lambda: on(1).normal_(generator=torch.Generator()), RuntimeError, GENERATOR),
    "counts by dice of the CPU": (lambda: torch.poisson(on(1), generator=torch.Generator()), RuntimeError, GENERATOR),
    "counts by dice of the device": (
        lambda: torch.poisson(here(1), generator=torch.Generator(NAME)), RuntimeError, GENERATOR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@apart
def test_what_cuda_refuses_is_refused(case: str):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def list_of(x: Tensor) -> list:
    assert x.device.type == NAME
    return x.tolist()


TAKEN: dict[str, tuple[Callable[[], object], object]] = {
    "a number of the CPU": (lambda: list_of(on(1, 2) + number(1.0)), [2, 3]),
    "a number of the CPU first": (lambda: list_of(number(1.0) - on(1, 2)), [0, -1]),
    "a number of the CPU in place": (lambda: list_of(on(1, 2).mul_(number(3.0))), [3, 6]),
    "places on the CPU": (lambda: list_of(on(1, 2)[here(1, 0).long()]), [2, 1]),
    "transfers": (lambda: (on(1, 2).cpu() + here(1, 2)).tolist(), [2, 4]),
    "a copy to the CPU": (lambda: torch.zeros(2).copy_(on(1, 2)).tolist(), [1, 2]),
    "a copy from the CPU": (lambda: list_of(on(0, 0).copy_(here(1, 2))), [1, 2]),
    "a part in place": (lambda: [x := on(1, 2, 3), x[1:].mul_(2), list_of(x)][-1], [1, 4, 6]),
    "as_tensor": (lambda: list_of(torch.as_tensor(np.ones(2), dtype=torch.float32, device=NAME)), [1, 1]),
    "like one, on the CPU": (lambda: torch.ones_like(on(1, 2), device="cpu").numpy().tolist(), [1, 1]),
    "a list": (lambda: on(1, 2).tolist(), [1, 2]),
    "numbers": (lambda: (float(on(2)), int(on(2)), bool(on(2)), on(2).item()), (2, 2, True, 2)),
}


@pytest.mark.parametrize("case", TAKEN)
@apart
def test_what_cuda_takes_is_taken(case: str):
    call, wanted = TAKEN[case]
    assert call() == wanted


@apart
def test_dice_of_the_device_draw_what_those_of_the_cpu_draw():
    for draw in (torch.rand, torch.randn):
        own = draw(5, generator=torch.Generator(NAME).manual_seed(3), device=NAME)
        assert own.tolist() == draw(5, generator=torch.Generator().manual_seed(3)).tolist()
    generator = torch.Generator(NAME)
    assert isinstance(generator, torch.Generator) and generator.device == torch.device(NAME, 0) == on(1).device


@apart
def test_a_number_that_is_gone_leaves_no_trace_in_the_list_of_dice():
    """Else a generator of the CPU that gets its place in memory would count as one of the device."""
    for _ in range(100):
        torch.Generator(NAME)
        torch.rand(1, generator=torch.Generator())


@apart
def test_a_network_moves_learns_copies_and_saves():
    network: Any = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    weight, before = network[0].weight, network[0].weight.tolist()
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    network.to(NAME, memory_format=torch.channels_last)
    assert network[0].weight is weight and isinstance(weight, torch.nn.Parameter) and weight.device.type == NAME
    for net, device in ((network, NAME), (other, "cpu")):
        optimizer = torch.optim.AdamW(net.parameters(), 0.1)
        net(torch.arange(32.0, device=device).reshape(2, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    assert weight.tolist() == other[0].weight.tolist() != before
    assert copy.deepcopy(network)[0].weight.device.type == NAME
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    assert {x.device.type for x in torch.load(file, map_location="cpu", weights_only=True).values()} == {"cpu"}


@apart
def test_autocast_of_the_cpu_is_not_autocast_of_the_device():
    with torch.autocast("cpu", torch.bfloat16):
        assert (here(1) @ here(1)).dtype == torch.bfloat16 and (on(1) @ on(1)).dtype == torch.float32


@apart
def test_a_change_of_shape_in_place_is_not_computed_wrongly():
    with pytest.raises(NotImplementedError, match="unsqueeze_.* changes the shape"):
        on(1).unsqueeze_(0)


def test_the_pinned_torch_has_the_device():
    """Where torch is another one, these tests may be skipped; in CI it is this one."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = next(line.partition("==")[2] for line in lines if line.startswith("torch=="))
    if Version(torch.__version__).public != Version(pinned).public:
        pytest.skip(f"torch is {torch.__version__}, not {pinned}")
    assert not unavailable()
