"""Trained networks: files of weights that describe themselves, and those that come with the package, by name."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .._files import HashMismatch, TruncatedFile, replacing, with_suffix
from .._validate import choice, finite
from .cddpm import ConditionalDiffusion
from .deepstorm import DeepSTORM

FOLDER = Path(__file__).parents[1] / "weights"
SHA256 = {  # name of shipped weights: SHA-256 of FOLDER / name.safetensors
    "deepstorm-2d": "8ccbff15698df0e9edf9aeb48dfbe0b4e1d850915b076cbf40eb3d2e61167a76",
    "cddpm-2d": "54b2c5ceb77faffbd38d7001f479944f36e8a2fd2a693ba279745b333afb1534",
    "cddpm-2d-published": "de51c3dbf0dac985efdbe8884d3c58c53e9f4130d7864351d6ebefc5f9ca2ddb",
}

SUFFIX = ".safetensors"
KEY = "smlmtut"  # of the file's metadata: one JSON text, so that equal networks give equal bytes
CLASSES = {"DeepSTORM": DeepSTORM, "ConditionalDiffusion": ConditionalDiffusion}
Network = TypeVar("Network", DeepSTORM, ConditionalDiffusion)
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PICKLES = (b"PK\x03\x04", b"\x80")  # how torch.save's files begin, now and formerly


class ArchitectureMismatch(ValueError):
    """Weights that do not fit the network that their file names."""


def save(
    network: DeepSTORM | ConditionalDiffusion,
    path: str | Path,
    metadata: dict[str, Any] | None = None,
    stored: str = "float32",
) -> str:
    """Write a network's weights and what is needed to build it again; returns the file's SHA-256.

    path: ends in .safetensors; a file that is there is replaced only when all is written.
    metadata: more to keep in the file, anything that JSON can hold (training settings, commit, scores).
    stored: "float32"; "float16" or "bfloat16" halve the file and round the weights to 11 or 8 bits.
    Raises ValueError for another suffix or type, a class that `load` does not know, weights that are not finite
    as stored, or metadata that JSON cannot hold.
    """
    path = with_suffix("path", path, (SUFFIX,))
    kind = choice("network", type(network).__name__, tuple(CLASSES))
    dtype = STORED[choice("stored", stored, tuple(STORED))]
    tensors = {name: x.detach().cpu().to(dtype).contiguous() for name, x in network.state_dict().items()}
    for name, x in tensors.items():
        finite(f"network's {name} as {stored}", x)
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
        wrote (a Path, or a text with a suffix or a folder in it). Needs no network. Never unpickles.
    kind: the class that is wanted; a file of another one is an ArchitectureMismatch.
    Raises ValueError for an unknown name, a file of another kind, or weights that are not finite; and these,
    which are ValueErrors too: HashMismatch where shipped weights are not those registered, TruncatedFile,
    ArchitectureMismatch where the tensors are not those of the class the file names. FileNotFoundError where
    there is no file.
    """
    path = _path(name_or_path)
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
        got = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        _compare(path, f"{kind.__name__}({', '.join(f'{k}={v}' for k, v in arguments.items())})", wanted, got)
        tensors = {name: file.get_tensor(name) for name in wanted}
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise ArchitectureMismatch(f"{path} must hold floating-point weights, got {name} of type {x.dtype}")
        finite(f"{name} in {path}", x)
    network.load_state_dict({name: x.float() for name, x in tensors.items()}, assign=True)
    network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network.eval().requires_grad_(False)


def describe(name_or_path: str | Path = "deepstorm-2d") -> dict[str, Any]:
    """What a file of weights says about itself: "class", "arguments" and the metadata given to `save`.

    Raises what `load` raises for a file that cannot be read or names no class that it knows.
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


def card(name_or_path: str | Path = "deepstorm-2d") -> str:
    """The model card: training, scores and limits of a network, as Markdown.

    Raises ValueError for an unknown name, FileNotFoundError where no .md lies beside the weights.
    """
    return _place(name_or_path).with_suffix(".md").read_text(encoding="utf-8")


def sha256(name_or_path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits; a name stands for the weights that come with the package."""
    with open(_place(name_or_path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(name_or_path: str | Path) -> Path:
    """Where weights lie; a name is a text without suffix and folder."""
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix or len(path.parts) != 1:
        return path
    if name_or_path not in SHA256:
        known = ", ".join(map(repr, SHA256)) or "none"
        raise ValueError(f"name_or_path must be a {SUFFIX} file or one of the shipped weights ({known}), got {path}")
    return FOLDER / f"{name_or_path}{SUFFIX}"


def _path(name_or_path: str | Path) -> Path:
    """Where weights lie, the SHA-256 of shipped ones verified."""
    path = _place(name_or_path)
    if path.parent == FOLDER and path.stem in SHA256:
        wanted, got = SHA256[path.stem], sha256(path)
        if got != wanted:
            raise HashMismatch(f"{path} must have the SHA-256 {wanted}, got {got}: install the package again")
    return path


def _opened(path: Path) -> Any:
    """A safetensors file open for reading; ValueError where it is none, TruncatedFile where it ends too early."""
    size = path.stat().st_size
    with open(path, "rb") as raw:
        head = raw.read(8)  # the header's length; then comes the header, JSON
        length = int.from_bytes(head, "little")
        header = raw.read(min(length, size))
    # the length's first byte may be any, so that alone does not make a pickle
    if head.startswith(PICKLES) and not header.startswith(b"{"):
        raise ValueError(f"{path} must be a safetensors file, got a pickle, which could run any code and is not read")
    if header.startswith(b"{") and 8 + length + _data_bytes(header) > size:
        raise TruncatedFile(f"{path} is truncated: its header and tensors do not fit in its {size} bytes")
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file, got {size} bytes that are none: {error}") from error


def _data_bytes(header: bytes) -> int:
    """Bytes of all tensors as a header tells them; 0 where it is no header."""
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
