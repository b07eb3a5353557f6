"""Weights come back as they were stored, and a file that is not what it says is refused with a reason."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from smlmtut.data import HashMismatch
from smlmtut.io import TruncatedFile
from smlmtut.networks import pretrained
from smlmtut.networks.cddpm import ConditionalDiffusion
from smlmtut.networks.condition import FitRange
from smlmtut.networks.deepstorm import DeepSTORM
from smlmtut.networks.emitter_set import EmitterSet
from smlmtut.networks.engression import Engression
from smlmtut.networks.pretrained import (
    RENAMED,
    ArchitectureMismatch,
    copy_weights,
    current_name,
    describe,
    load,
    save,
    sha256,
)
from smlmtut.networks.rivals import Gaussian

ARGUMENTS = {"channels": 4, "dilations": (1, 2), "upsampled": (4, 2), "predicting": 1, "sigma": 1.5, "ceiling": 3.0}


def tiny() -> DeepSTORM:
    """A small network with random weights in every tensor, those that start at 0 included."""
    network = DeepSTORM(**ARGUMENTS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return network


@pytest.fixture
def path(tmp_path):
    save(tiny(), tmp_path / "tiny.safetensors", {"commit": "abc", "steps": 3})
    return tmp_path / "tiny.safetensors"


def rewritten(path, metadata=None, **changes):
    """The file with other tensors (None: taken out) or other metadata."""
    tensors = load_file(path) | {k.replace("__", "."): v for k, v in changes.items()}
    text = json.dumps(describe(path) | (metadata or {}))
    save_file({k: v for k, v in tensors.items() if v is not None}, path, metadata={"smlmtut": text})
    return path


def test_a_network_comes_back_bit_by_bit_ready_to_use(path):
    before, after = tiny(), load(path)
    assert after.architecture == before.architecture and not after.training
    for (name, a), (other, b) in zip(before.state_dict().items(), after.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b) and b.dtype == torch.float32
    assert not any(p.requires_grad for p in after.parameters())
    x = torch.rand(2, 1, 9, 8) * 50
    before.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # layouts sum in their own order
    assert torch.equal(before(x, 2.0), after(x, 2.0))


@pytest.mark.parametrize("kind", [ConditionalDiffusion, Gaussian, EmitterSet, Engression])
def test_the_range_of_the_fit_belongs_to_the_network(tmp_path, kind):
    """Files without one, as the shipped ones are, have that of the reference scene."""
    wanted, path = FitRange((3000, 9000), (60, 90), (1.2, 1.4)), tmp_path / "mine.safetensors"
    save(kind(channels=(4, 8), fit=wanted), path)
    assert load(path, kind=kind).fit == wanted and describe(path)["arguments"]["fit"]["sigma"] == [1.2, 1.4]
    arguments = describe(path)["arguments"]
    for fit, words in (({"sigma": [2, 1]}, "sigma must be two increasing limits"), ({"gain": [1, 2]}, "gain")):
        with pytest.raises(ArchitectureMismatch, match=words):
            load(rewritten(path, {"arguments": arguments | {"fit": fit}}), kind=kind)
    del arguments["fit"]
    assert load(rewritten(path, {"arguments": arguments}), kind=kind).fit == FitRange()
    shipped = [name for name in pretrained.SHA256 if describe(name)["class"] == kind.__name__]
    assert shipped and all(load(name, kind=kind).fit == FitRange() for name in shipped)


def test_weights_are_copied_into_a_network_of_the_same_architecture(path, tmp_path):
    network = DeepSTORM(**ARGUMENTS)
    copy_weights(path, network)
    assert all(torch.equal(x, tiny().state_dict()[name]) for name, x in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())
    with pytest.raises(ArchitectureMismatch, match="like the one to train, got sigma 1.5, not 2.0"):
        copy_weights(path, DeepSTORM(4, (1, 2), (4, 2), 1, sigma=2.0, ceiling=3.0))
    wide = Engression((4, 8), fit=FitRange(sigma=(1.2, 1.4)))
    save(Engression((4, 8)), tmp_path / "fast.safetensors")
    copy_weights(tmp_path / "fast.safetensors", wide)
    assert wide.fit.sigma == (1.2, 1.4)


def test_the_file_tells_how_it_was_made(path):
    content = describe(str(path))
    assert content["class"] == "DeepSTORM" and content["commit"] == "abc" and content["steps"] == 3
    assert content["arguments"] == tiny().architecture


def test_equal_networks_give_equal_bytes(path, tmp_path):
    other = tmp_path / "other.safetensors"
    assert save(tiny(), other, {"commit": "abc", "steps": 3}) == sha256(path) == sha256(other)


def test_loading_draws_no_random_number(path):
    state = torch.get_rng_state()
    load(path)
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture
def shipped(path, monkeypatch):
    """The tiny network as if it came with the package."""
    monkeypatch.setattr(pretrained, "FOLDER", path.parent)
    monkeypatch.setattr(pretrained, "SHA256", {"tiny": sha256(path)})
    return path


def test_shipped_weights_by_name(shipped):
    assert torch.equal(load("tiny").head.weight, tiny().head.weight)
    assert describe("tiny")["commit"] == "abc"


def test_a_changed_bit_of_shipped_weights_is_found(shipped):
    data = bytearray(shipped.read_bytes())
    data[-1] ^= 1
    shipped.write_bytes(data)
    with pytest.raises(HashMismatch, match=f"{shipped} must have the SHA-256 {pretrained.SHA256['tiny']}, got"):
        load("tiny")


@pytest.mark.parametrize("ask", [load, describe])
def test_an_unknown_name_lists_the_known_ones(shipped, ask):
    with pytest.raises(ValueError, match="shipped weights \\('tiny'\\), got deepstorm-9d"):
        ask("deepstorm-9d")


def test_every_registered_file_is_there_whole_and_has_a_card():
    for name in pretrained.SHA256:
        kind = pretrained.CLASSES[describe(name)["class"]]
        assert not load(name, kind=kind).training  # pyright: ignore[reportArgumentType]
        assert (pretrained.FOLDER / f"{name}.md").read_text(encoding="utf-8").startswith("# ")


OLD = {new: old for old, new in RENAMED.items()}


def test_a_file_with_the_old_names_is_the_same_network_as_one_saved_now(tmp_path):
    network = ConditionalDiffusion("published", "noise", (4, 8), attention=True)
    save(network, tmp_path / "now.safetensors")
    now = load_file(tmp_path / "now.safetensors")
    assert now.keys() == network.state_dict().keys()
    before = {".".join(OLD.get(part, part) for part in tensor.split(".")): x for tensor, x in now.items()}
    assert {part for tensor in before for part in tensor.split(".")} & RENAMED.keys() == RENAMED.keys() - {"read"}
    text = json.dumps(describe(tmp_path / "now.safetensors"))
    save_file(before, tmp_path / "before.safetensors", metadata={"smlmtut": text})
    for name in ("now", "before"):
        found = load(tmp_path / f"{name}.safetensors", kind=ConditionalDiffusion).state_dict()
        assert found.keys() == now.keys() and all(torch.equal(x, now[tensor]) for tensor, x in found.items())


def test_no_name_of_today_is_an_old_one():
    assert all(current_name(f"unet.{new}.weight") == f"unet.{new}.weight" for new in OLD)
    assert len(OLD) == len(RENAMED)


def test_a_tensor_with_both_names_is_refused(path):
    network = ConditionalDiffusion(channels=(4, 8))
    save(network, path)
    with pytest.raises(ArchitectureMismatch, match="must hold each tensor once"):
        load(rewritten(path, unet__level__0__bias=torch.zeros(16)), kind=ConditionalDiffusion)


def test_a_network_of_another_class_is_refused():
    with pytest.raises(ArchitectureMismatch, match="must hold a DeepSTORM, got a ConditionalDiffusion"):
        load("cddpm-2d")
    with pytest.raises(ArchitectureMismatch, match="must hold a ConditionalDiffusion, got a DeepSTORM"):
        load("deepstorm-2d", kind=ConditionalDiffusion)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("cut", [0, 5, 40, 0.5, -1])
def test_a_truncated_file(path, cut):
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    # the first 8 bytes do not tell a safetensors file from another
    kind, message = (ValueError, "must be a safetensors file") if cut in (0, 5) else (TruncatedFile, "is truncated")
    with pytest.raises(kind, match=f"{path} {message}"):
        load(path)


def test_bytes_at_the_end_that_belong_to_nothing(path):
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(ValueError, match=f"{path} must be a safetensors file") as info:
        load(path)
    assert not isinstance(info.value, TruncatedFile)


class Bomb:
    """Unpickling it would raise another error than the one expected."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_is_refused_unread(tmp_path, form):
    path = tmp_path / "weights.pt"
    if form == "torch":
        torch.save(Bomb(), path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=f"{path} must be a safetensors file, got a pickle"):
        load(path)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 100, b"frame,x,y\n1,2,3\n"])
def test_another_kind_of_file(tmp_path, data):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path} must be a safetensors file"):
        load(path)


def test_safetensors_of_someone_else(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=f"{path} must say in its metadata how to build its network"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head__bias": None}, "head.bias is missing"),
        ({"tail__bias": torch.zeros(1)}, "tail.bias is not part of it"),
        ({"head__bias": torch.zeros(2)}, r"head.bias has shape \(2,\), not \(1,\)"),
        (
            {"head__bias": torch.zeros(1, dtype=torch.int32)},
            "floating-point weights, got head.bias",
        ),
        ({"metadata": {"class": "UNet"}}, "must hold a network of class DeepSTORM"),
        ({"metadata": {"arguments": {"width": 3}}}, "must hold arguments of DeepSTORM"),
        ({"metadata": {"arguments": {**ARGUMENTS, "channels": 0}}}, "channels must be a whole number"),
        ({"metadata": {"arguments": {**ARGUMENTS, "channels": 5}}}, "must hold the tensors of DeepSTORM"),
        # built for real, this would take 36 TB
        ({"metadata": {"arguments": {**ARGUMENTS, "channels": 10**6}}}, "must hold the tensors of DeepSTORM"),
    ],
)
def test_tensors_that_do_not_fit(path, changes, message):
    with pytest.raises(ArchitectureMismatch, match=message) as info:
        load(rewritten(path, **changes))
    assert str(path) in str(info.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(path, bad):
    with pytest.raises(ValueError, match=f"head.bias in {path} must be finite"):
        load(rewritten(path, head__bias=torch.tensor([bad])))
    network = tiny()
    torch.nn.init.constant_(next(network.parameters()), bad)
    with pytest.raises(ValueError, match="stem.weight must be finite"):
        save(network, path)


def test_what_cannot_be_saved(path):
    before = path.read_bytes()
    network = tiny()
    with pytest.raises(ValueError, match="path must end in .safetensors"):
        save(network, path.with_suffix(".pt"))
    with pytest.raises(ValueError, match="network must be one of 'DeepSTORM', .*, got 'Linear'"):
        save(torch.nn.Linear(1, 1), path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metadata must be what JSON can hold"):
        save(network, path, {"when": object()})
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]
