"""A device that is not the CPU, on any machine: `fakegpu` computes on the CPU and is as strict as CUDA about places.

What a test on it proves: that every tensor and every generator is made on the device that was asked for, and that
what goes to numpy, to a file or to a library of the CPU is brought back first. It refuses what CUDA refuses:

- tensors of two devices in one operation, but for a CPU number of no dimensions in arithmetic that writes elsewhere
- a generator of the CPU for numbers of the device, and the other way round
- `.numpy()`, and a CPU tensor at places that a tensor of the device gives

What it does not prove: anything about CUDA's own arithmetic (its rounding, its order of sums, half precision), its
memory, its streams, or its speed. Numbers are those of the CPU to the last bit, random numbers too: a generator of
the device draws what one of the CPU with the same seed draws. A file holds tensors of the device as CPU tensors, as
a file of CUDA tensors does for one who loads it with map_location="cpu".

It is for a process of its own: torch cannot forget a device, nor take one once it has computed a gradient. `apart`
runs a test in such a process.
"""

import atexit
import functools
import importlib
import multiprocessing
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from smlmtut.networks import precision

NAME = "fakegpu"
DEVICE = torch.device("privateuseone", 0)  # the slot that torch keeps for devices of others; it is renamed to NAME
TRANSFERS = ("aten::copy_", "aten::_to_copy", "aten::_copy_from")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
# beside arithmetic, what takes a CPU number of no dimensions as a value
VALUES = (*INDEXING[1:], "aten::masked_fill", "aten::masked_fill_", "aten::fill_", "aten::where")


class DeviceTensor(Tensor):
    """A tensor of the device; `data_on_cpu` holds its numbers."""

    data_on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, data_on_cpu: Tensor) -> "DeviceTensor":
        x = data_on_cpu
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, x.shape, strides=x.stride(), storage_offset=x.storage_offset(), dtype=x.dtype, device=DEVICE
        )

    def __init__(self, data_on_cpu: Tensor) -> None:
        self.data_on_cpu = data_on_cpu

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.data_on_cpu!r} on {NAME}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: "DeviceTensor") -> None:
        self.data_on_cpu = value.data_on_cpu
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]

    def __matmul__(self, other: Tensor) -> Tensor:  # type: ignore[override]
        if self.ndim == 1 and other.ndim > 1:  # torch would squeeze the product in place
            return (self[None] @ other)[0]
        return torch.matmul(self, other)

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else repr(self), spec)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Generator(torch.Generator):
    """A generator of the CPU or of the device; either way it draws on the CPU."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]

    def __init__(self, device: Any = "cpu") -> None:
        self.place = DEVICE if torch.device(device).type == NAME else torch.device(device)
        if self.place == DEVICE:
            # torch hands operations another object for the same generator
            OF_THE_DEVICE[self._cdata] = self  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


OF_THE_DEVICE: WeakValueDictionary[int, Generator] = WeakValueDictionary()


class Places(TorchDispatchMode):
    """What no tensor of the device takes part in: new tensors on it, and its generators."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if DeviceTensor not in types:
            device = kwargs.get("device")
            if device is not None and device.type == NAME:
                return compute(operation, args, kwargs)
            check_generators((*args, *kwargs.values()), "cpu")
        return operation(*args, **kwargs)


def compute(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, computed on the CPU and put where CUDA puts it; RuntimeError where CUDA refuses."""
    leaves, structure = _pytree.tree_flatten((args, kwargs))
    check_generators(leaves, NAME)
    check_devices(operation, args, kwargs)
    asked = [x.type for x in leaves if isinstance(x, torch.device)]
    on_cpu = [torch.device("cpu") if isinstance(x, torch.device) else getattr(x, "data_on_cpu", x) for x in leaves]
    given = {id(raw): x for raw, x in zip(on_cpu, leaves, strict=True)}  # an operation in place returns its argument
    positional, named = _pytree.tree_unflatten(on_cpu, structure)
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
        result = operation(*positional, **named)
    for raw, x in zip(on_cpu, leaves, strict=True):
        if isinstance(x, DeviceTensor) and (raw.shape, raw.stride()) != (x.shape, x.stride()):  # type: ignore
            raise NotImplementedError(f"{operation} changes the shape of a tensor in place")
    if asked and asked[0] != NAME:
        return result
    return _pytree.tree_map_only(Tensor, lambda x: given[id(x)] if id(x) in given else DeviceTensor(x), result)


def check_generators(values: Iterable[Any], place: str) -> None:
    """RuntimeError for a generator that is elsewhere."""
    for x in values:
        if isinstance(x, torch._C.Generator):
            found = NAME if x._cdata in OF_THE_DEVICE else "cpu"  # type: ignore[attr-defined]
            if found != place:
                raise RuntimeError(f"Expected a '{place}' device type for generator but found '{found}'")


def check_devices(operation: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """RuntimeError where CUDA takes no tensor of the CPU."""
    name, arguments = operation._schema.name, operation._schema.arguments
    values = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    if name in TRANSFERS or not any(isinstance(x, DeviceTensor) for x in _pytree.tree_leaves(values)):
        return
    if name in INDEXING and isinstance(args[0], DeviceTensor):
        del values["indices"]  # they may lie on the CPU
    numbers = name in VALUES or torch.Tag.pointwise in operation.tags
    for argument in arguments:
        written = argument.alias_info is not None and argument.alias_info.is_write
        for x in _pytree.tree_leaves(values.get(argument.name)):
            elsewhere = isinstance(x, Tensor) and not isinstance(x, DeviceTensor)
            if elsewhere and not (numbers and x.ndim == 0 and not written):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and "
                    f"{x.device}: {argument.name} of {name}"
                )


def unavailable() -> str:
    """Why this torch cannot have the device; "" where it can."""
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    return "" if setup else f"torch {torch.__version__} has no devices that are written in Python"


def install() -> None:
    """Give this process the device, once and for all; accelerate finds it, too."""

    class Backend(backend_registration._DummyBackendModule):  # type: ignore[name-defined]
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    global DEVICE
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())  # type: ignore[attr-defined]
    DEVICE = torch.device(NAME, 0)
    # by these torch makes tensors of lists, and moves tensors, where it dispatches to no class
    implement = functools.partial(torch.library.impl, types="privateuseone")
    implement(
        "aten::empty.memory_format", func=lambda size, dtype=None, **_: DeviceTensor(torch.empty(size, dtype=dtype))
    )
    implement(
        "aten::empty_strided",
        func=lambda size, stride, dtype=None, **_: DeviceTensor(torch.empty_strided(size, stride, dtype=dtype)),
    )
    implement("aten::_copy_from", func=_copy)
    # CPU and CUDA have a kernel for it; for other devices torch has a formula, which rounds otherwise
    silu_backward = torch.ops.aten.silu_backward.default
    implement("aten::silu_backward", func=lambda *tensors: compute(silu_backward, tensors, {}))
    torch.Generator = Generator  # type: ignore[misc]
    torch.__future__.set_swap_module_params_on_conversion(True)  # a module that moves keeps its parameters, as on CUDA
    PartialState.default_device = property(lambda _: DEVICE)  # type: ignore[assignment]
    Places().__enter__()


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    getattr(target, "data_on_cpu", target).copy_(getattr(source, "data_on_cpu", source))
    return target


def apart(test: Callable) -> Callable:
    """Run a test of these arguments, which must pickle, in a process that has the device; skip it without one."""

    @functools.wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        if reason := unavailable():
            pytest.skip(reason)
        process().submit(_run, test.__module__, test.__name__, args, kwargs).result()

    return call


@functools.cache
def process() -> ProcessPoolExecutor:
    """The process that has the device."""
    spawn = multiprocessing.get_context("spawn")  # a forked one would have this one's threads of torch
    pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_start)
    atexit.register(pool.shutdown)
    return pool


def _start() -> None:
    install()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # on a CPU with bf16 instructions "auto" would compare two precisions, since the other device has none
    precision.cpu_has_bf16 = lambda: False


def _run(module: str, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    getattr(importlib.import_module(module), name).__wrapped__(*args, **kwargs)
