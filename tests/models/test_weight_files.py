"""Weight files of all kinds: read, or refused in words, and never executed."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from planted import Planted
from safetensors.torch import save, save_file

from flowers_bench import UsageError
from flowers_bench.models.weights.files import read_tensors
from flowers_bench.models.weights.source import resolve_weights


def state() -> dict[str, torch.Tensor]:
    return timm.create_model("test_resnet", num_classes=3).state_dict()


def deflated(path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def flipped(path: Path) -> None:
    torch.save({"a": torch.rand(10_000)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def claiming(path: Path) -> None:
    content = save({"a": torch.zeros(4)})
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["a"] = {"dtype": "F32", "shape": [400], "data_offsets": [0, 1600]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def cut(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])


def saved(value: object) -> Callable[[Path], object]:
    return lambda path: torch.save(value, path)


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def scripted(path: Path) -> None:
    with pytest.warns(FutureWarning):
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)


def legacy(path: Path) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=False)


def legacy_cut(path: Path) -> None:
    legacy(path)
    cut(path, path.read_bytes())


def torch_cut(path: Path) -> None:
    torch.save(state(), path)
    cut(path, path.read_bytes())


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (written(b""), "is empty"),
    "git lfs pointer": (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), "git lfs pull"),
    "web page": (written(b"\n<!DOCTYPE html><html><body>404</body></html>"), "web page"),
    "json": (written(b'{"architecture": "resnet18"}'), "JSON text"),
    "zeros": (written(bytes(4096)), "nothing but zeros"),
    "text": (written(b"hello"), "no weight file"),
    "gzip": (written(b"\x1f\x8b" + bytes(50)), "gzip archive"),
    "safetensors, cut short": (lambda path: cut(path, save(state())), "cut short"),
    "safetensors, a header without end": (written(struct.pack("<Q", 1 << 62) + b'{"a":1}'), "header does not end"),
    "safetensors, more claimed than there is": (claiming, "its header tells of"),
    "safetensors, no header": (written(struct.pack("<Q", 4) + b"{abc"), "not that of safetensors"),
    "torch, cut short": (torch_cut, "cut short or damaged"),
    "torch, one bit flipped": (flipped, "checksum"),
    "torch before 1.6, cut short": (legacy_cut, "damaged"),
    "zip bomb": (deflated, "grows when it is unpacked"),
    "expanded": (saved({"a": torch.zeros(1).expand(10**12)}), "claims 1000000000000 values"),
    "sparse": (saved({"a": torch.eye(3).to_sparse()}), "is sparse"),
    "without values": (saved({"a": torch.zeros(3, device="meta")}), "is without values"),
    "module": (saved(torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "program": (scripted, "TorchScript"),
    "list": (saved([torch.zeros(3)]), "holds one list"),
    "number": (saved({"a": 3}), "holds no tensor"),
    "pickle": (written(pickle.dumps({"a": 1})), "a pickle that torch.save did not write"),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_what_is_no_weight_file_is_called_what_it_is(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "w.pth"
    make(path)
    with pytest.raises(UsageError, match=r"w\.pth") as refused:
        read_tensors(path)
    assert words in str(refused.value)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("how", ["alone", "in a mapping", "bare"])
def test_code_in_a_file_is_not_run(tmp_path: Path, how: str) -> None:
    path, witness = tmp_path / "w.pth", tmp_path / "witness"
    if how == "bare":
        path.write_bytes(pickle.dumps(Planted(witness)))
    else:
        torch.save(Planted(witness) if how == "alone" else {**state(), "x": Planted(witness)}, path)
    with pytest.raises(UsageError, match="could run code"):
        read_tensors(path)
    assert not witness.exists()


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    endless: dict[str, object] = {"a": torch.zeros(3)}
    endless |= {f"again{i}": endless for i in range(50)}
    torch.save(endless, tmp_path / "w.pth")
    assert list(read_tensors(tmp_path / "w.pth")) == ["a"]


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch before 1.6"])
def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path: Path, name: str, kind: str) -> None:
    expected = state()
    if kind == "safetensors":
        save_file(expected, tmp_path / name)
    else:
        torch.save(expected, tmp_path / name, _use_new_zipfile_serialization=kind == "torch")
    found = read_tensors(tmp_path / name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_mappings_in_mappings_become_dotted_names_and_arguments_are_left_out(tmp_path: Path) -> None:
    inner = {"conv.weight": torch.ones(2)}
    whole = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "model_ema": {"module": inner}, "optimizer": {"state": {}}}
    torch.save(whole, tmp_path / "w.pth")
    assert list(read_tensors(tmp_path / "w.pth")) == ["model_ema.module.conv.weight"]


def test_a_directory_is_called_one_and_the_file_in_it_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(save(state()))
    with pytest.raises(UsageError, match=r"is a directory\. Name a weight file, such as .*model\.safetensors"):
        resolve_weights(str(tmp_path), "test_resnet")


@pytest.mark.parametrize("asked", ["a" * 300, "~nobody-of-that-name/w.pth", "no/such/w.pth"])
def test_a_path_that_cannot_be_is_refused(asked: str) -> None:
    with pytest.raises(UsageError):
        resolve_weights(asked, "test_resnet")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(UsageError, match="not a regular file"):
        resolve_weights(str(tmp_path / "w.pth"), "test_resnet")


def test_a_file_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "w.pth").open("wb") as stream:
        stream.write(b"PK\x03\x04")
        stream.truncate(1 << 42)  # sparse: it takes no room
    with pytest.raises(UsageError, match=r"4096\.0 GiB"):
        resolve_weights(str(tmp_path / "w.pth"), "test_resnet")
