"""Trained networks: files of weights that describe their network, and the weights of the package by name."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .._files import HashMismatch, TruncatedFile, replacing, with_suffix
from .._validate import choice, device_here, finite, shown
from .cddpm import ConditionalDiffusion
from .deepstorm import DeepSTORM
from .emitter_set import EmitterSet
from .engression import Engression
from .rivals import Gaussian

FOLDER = Path(__file__).parents[1] / "weights"
SHA256 = {  # name of shipped weights: SHA-256 of FOLDER / name.safetensors
    "deepstorm-2d": "8ccbff15698df0e9edf9aeb48dfbe0b4e1d850915b076cbf40eb3d2e61167a76",
    "cddpm-2d": "122a62635d182431010b4e7bce192e8ba8ac5261984312efb85fe87d060ee3f3",
    "cddpm-2d-published": "24ca1059113c3bb21ca2a97a928c6258c931991992f06f7fe3b92c1f36d450b5",
    "gaussian-2d": "9b3c03dd65abae297f0b9230684f056700fbe0835a5b61648b5ba61fd15f7f69",
    "engression-2d": "77f4749b416d0a61423bd8b5d638a77b8d9c7a3873d2721dd066a6733849c3f2",
    "emitters-2d": "223c75a8490856d07dd4144196729d242e78d17cdfe65b1d05c30733dfcad00e",
}

SUFFIX = ".safetensors"
KEY = "smlmtut"  # of the file's metadata: one JSON text, so that equal networks give equal bytes
CLASSES = {kind.__name__: kind for kind in (DeepSTORM, ConditionalDiffusion, Gaussian, EmitterSet, Engression)}
Network = TypeVar("Network", DeepSTORM, ConditionalDiffusion, Gaussian, EmitterSet, Engression)
PICKLES = (b"PK\x03\x04", b"\x80")  # the first bytes of files of torch.save, now and formerly
RENAMED = {  # modules: name in older files, the shipped ones included, and name today
    "read": "reader", "level": "time_embedding", "told": "time_proj", "before": "encoder", "inner": "middle",
    "after": "decoder", "ask": "qkv", "answer": "proj", "first": "conv1", "second": "conv2", "normalize": "norm",
}  # fmt: skip


class ArchitectureMismatch(ValueError):
    """Weights that do not fit the network named in their file."""


def save(
    network: DeepSTORM | ConditionalDiffusion | Gaussian | EmitterSet | Engression,
    path: str | Path,
    metadata: dict[str, Any] | None = None,
) -> str:
    """Write the weights of a network and what is needed to build it again; returns the SHA-256 of the file.

    path: ends in .safetensors; an existing file is replaced only once the new one is complete.
    metadata: more to keep in the file, anything that JSON can hold (training settings, commit, scores).
    Raises ValueError for another suffix, a class that `load` does not support, weights that are not finite, or
    metadata that JSON cannot hold.
    """
    path = with_suffix("path", path, (SUFFIX,))
    kind = choice("network", type(network).__name__, tuple(CLASSES))
    tensors = {name: x.detach().cpu().float().contiguous() for name, x in network.state_dict().items()}
    for name, x in tensors.items():
        finite(f"network's {name}", x)
    try:
        text = json.dumps({**(metadata or {}), "class": kind, "arguments": network.architecture}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be what JSON can hold: {error}") from error
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={KEY: text})
    return sha256(path)


def load(
    name_or_path: str | Path = "deepstorm-2d",
    device: torch.device | str = "cpu",
    kind: type[Network] = DeepSTORM,  # pyright: ignore[reportArgumentType]
) -> Network:
    """A trained network, float32, in eval mode and without gradients.

    name_or_path: a name in SHA256, for weights that come with the package; or a .safetensors file that `save`
        wrote (a Path, or a string with a suffix or a folder in it). Works offline. Never unpickles.
    kind: the class of the network.
    Raises ValueError for an unknown name or device, a file of another format, or weights that are not finite;
    HashMismatch where shipped weights are not the registered ones, TruncatedFile, and ArchitectureMismatch for a
    network of another class or tensors that do not fit the class, which are all ValueErrors; FileNotFoundError.
    """
    device, path = device_here("device", device), _path(name_or_path)
    content = describe(path)
    arguments = content["arguments"]
    if content["class"] != kind.__name__:
        raise ArchitectureMismatch(f"{path} must hold a {kind.__name__}, got a {content['class']}")
    try:
        with torch.device("meta"):  # shapes only: no memory is taken and no random number drawn
            network = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ArchitectureMismatch(
            f"{path} must hold arguments of {kind.__name__}, got {arguments}: {error}"
        ) from error
    wanted = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    with _opened(path) as file:
        stored = {current_name(name): name for name in file.keys()}
        if len(stored) < len(file.keys()):
            raise ArchitectureMismatch(f"{path} must hold each tensor once, got old and new names: {file.keys()}")
        got = {name: tuple(file.get_slice(old).get_shape()) for name, old in stored.items()}
        _compare(path, f"{kind.__name__}({', '.join(f'{k}={v}' for k, v in arguments.items())})", wanted, got)
        tensors = {name: file.get_tensor(stored[name]) for name in wanted}
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise ArchitectureMismatch(f"{path} must hold floating-point weights, got {name} of type {x.dtype}")
        finite(f"{name} in {path}", x)
    network.load_state_dict({name: x.float() for name, x in tensors.items()}, assign=True)
    network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network.eval().requires_grad_(False)


def copy_weights(name_or_path: str | Path, network: Network) -> None:
    """Give a network the weights of a file, to train on; only the range of the fit may be another there.

    Raises what `load` raises, and ArchitectureMismatch where another argument of the network differs.
    """
    other = load(name_or_path, kind=type(network))
    wanted, got = network.architecture, other.architecture
    wrong = [
        f"{name} {got[name]}, not {value}" for name, value in wanted.items() if name != "fit" and got[name] != value
    ]
    if wrong:
        raise ArchitectureMismatch(f"{name_or_path} must hold a network like the one to train, got {', '.join(wrong)}")
    network.load_state_dict(other.state_dict())


def describe(name_or_path: str | Path = "deepstorm-2d") -> dict[str, Any]:
    """The description in a file of weights: "class", "arguments" and the metadata given to `save`.

    Raises what `load` raises for a file that cannot be read or whose class `load` does not support.
    """
    path = _path(name_or_path)
    with _opened(path) as file:
        text = (file.metadata() or {}).get(KEY)
    try:
        content = json.loads(text or "")
        arguments = content["arguments"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} must say in its metadata how to build its network, as `save` writes it") from error
    if content.get("class") not in CLASSES or not isinstance(arguments, dict):
        raise ArchitectureMismatch(f"{path} must hold a network of class {', '.join(CLASSES)}, got {text}")
    return content


def current_name(name: str) -> str:
    """The name of a tensor today, for its name in a file of any age."""
    return ".".join(RENAMED.get(part, part) for part in name.split("."))


def sha256(name_or_path: str | Path) -> str:
    """SHA-256 of a file, or of the shipped weights of this name, in hexadecimal digits."""
    with open(_place(name_or_path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(name_or_path: str | Path) -> Path:
    """The path of weights; a string without suffix and folder is a name."""
    if not isinstance(name_or_path, str | Path):
        known = ", ".join(map(repr, SHA256))
        raise ValueError(f"name_or_path must be a {SUFFIX} file or one of {known}, got {shown(name_or_path)}")
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix or len(path.parts) != 1:
        return path
    if name_or_path not in SHA256:
        known = ", ".join(map(repr, SHA256)) or "none"
        raise ValueError(f"name_or_path must be a {SUFFIX} file or one of the shipped weights ({known}), got {path}")
    return FOLDER / f"{name_or_path}{SUFFIX}"


def _path(name_or_path: str | Path) -> Path:
    """The path of weights, after verifying the SHA-256 of shipped ones."""
    path = _place(name_or_path)
    if path.parent == FOLDER and path.stem in SHA256:
        wanted, got = SHA256[path.stem], sha256(path)
        if got != wanted:
            raise HashMismatch(f"{path} must have the SHA-256 {wanted}, got {got}: install the package again")
    return path


def _opened(path: Path) -> Any:
    """A safetensors file open for reading; ValueError for another format, TruncatedFile where it ends too early."""
    size = path.stat().st_size
    with open(path, "rb") as raw:
        head = raw.read(8)  # the header's length; then comes the header, JSON
        length = int.from_bytes(head, "little")
        header = raw.read(min(length, size))
    # The first byte of a length may have any value, that of a pickle too: look for the header's brace as well.
    if head.startswith(PICKLES) and not header.startswith(b"{"):
        raise ValueError(f"{path} must be a safetensors file, got a pickle, which could run any code and is not read")
    if header.startswith(b"{") and 8 + length + _data_bytes(header) > size:
        raise TruncatedFile(f"{path} is truncated: its header and tensors do not fit in its {size} bytes")
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file, got {size} bytes that are none: {error}") from error


def _data_bytes(header: bytes) -> int:
    """Bytes of all tensors according to a header; 0 where it is not a header."""
    try:
        return max(x["data_offsets"][1] for name, x in json.loads(header).items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return 0


def _compare(path: Path, network: str, wanted: dict[str, tuple], got: dict[str, tuple]) -> None:
    """ArchitectureMismatch where tensors are missing, too many or of other shapes."""
    wrong = [f"{name} is missing" for name in wanted.keys() - got.keys()]
    wrong += [f"{name} is not part of it" for name in got.keys() - wanted.keys()]
    wrong += [
        f"{name} has shape {got[name]}, not {wanted[name]}"
        for name in wanted.keys() & got.keys()
        if got[name] != wanted[name]
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ArchitectureMismatch(f"{path} must hold the tensors of {network}: {'; '.join(sorted(wrong)[:4])}{more}")
