"""Weight files, read as what they are: data from somebody else, of which only the tensors count.

What a file is, is told by its first bytes and not by its name. Nothing in it is executed, and nothing larger than the
file itself is made of it.
"""

from __future__ import annotations

import json
import re
import struct
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

#: How other files begin that are saved, or downloaded, under a weight file's name: what they are, and what mends it.
_OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights. Fetch them where it came from: git lfs pull",
    b"\x1f\x8b": "is a gzip archive. Unpack it first: gunzip",
    b"BZh": "is a bzip2 archive. Unpack it first: bunzip2",
    b"\xfd7zXZ": "is an xz archive. Unpack it first: unxz",
    b"\x89HDF": "is an HDF5 file, as Keras writes it. Convert it to a PyTorch state_dict.",
    b"\x93NUMPY": "is a NumPy array. Convert it to a PyTorch state_dict.",
    b"GGUF": "is a GGUF file of quantised weights. Get the original ones.",
}
#: What `torch.save` wrote before PyTorch 1.6: its magic number, pickled.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_ZIP = b"PK\x03\x04"
#: Of a safetensors header, in bytes: the library's own limit.
_LONGEST_HEADER = 100_000_000
#: How deep mappings may lie in each other.
_DEEPEST = 8
RESAVE = "Where it came from, save its tensors alone: torch.save(model.state_dict(), 'weights.pth')"


def check_file(path: Path) -> None:
    """Look at a weight file's kind and length, without reading its tensors.

    Raises:
        UsageError: it is not there, is no regular file, is cut short, larger than this machine's memory, or something
            else than a safetensors file or what `torch.save` wrote.
    """
    _kind(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file. Mappings in mappings become dotted names; what is no tensor is left out.

    Raises:
        UsageError: as `check_file`; or it is damaged, holds no tensors, or objects that only code could load.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    kind = _kind(path)
    try:
        if kind == "safetensors":
            loaded = load_file(path)
        else:
            # A Namespace, in many checkpoints, holds the arguments of a training. It is data, too.
            with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings(), path.open("rb") as stream:
                warnings.simplefilter("ignore")  # of what is refused below in our words
                loaded = torch.load(stream, "cpu", weights_only=True)  # of a path it would look at the name, too
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UsageError(f"weights file {path} is damaged: {_first_line(error)}. Copy or download it again.") from error
    except Exception as error:  # pickle.UnpicklingError and whatever a crafted file provokes
        raise UsageError(f"weights file {path} {_objects_in(error)}") from error
    if not isinstance(loaded, Mapping):
        raise UsageError(f"weights file {path} holds one {type(loaded).__name__}, not tensors by name. {RESAVE}")
    tensors = dict(_flat(loaded, "", set()))
    if not tensors:
        raise UsageError(f"weights file {path} is not a state_dict: it holds no tensor. {RESAVE}")
    for name, tensor in tensors.items():
        _refuse_unusual(path, name, tensor)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts that a safetensors file has beside its tensors; none of other kinds of files.

    Raises:
        UsageError: as `check_file`; or they are damaged.
    """
    if _kind(path) != "safetensors":
        return {}
    with path.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        found = json.loads(stream.read(length)).get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise UsageError(f"weights file {path} is damaged: its metadata are no texts. Copy it again.")
    return found


def _kind(path: Path) -> str:
    """Tell a file's kind by its first bytes: `safetensors`, `zip` or `legacy`."""
    try:
        if path.is_dir():
            inside = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".bin"))
            hint = f", such as {path / inside[0]}" if inside else ""
            raise UsageError(f"weights {path} is a directory. Name a weight file{hint}.")
        if not path.exists():
            raise UsageError(f"weights file {path} does not exist: no such file.")
        if not path.is_file():
            raise UsageError(f"weights {path} is not a regular file.")
        with path.open("rb") as stream:
            size, start = path.stat().st_size, stream.read(512)
    except OSError as error:
        raise UsageError(f"weights file {path} cannot be read: {error.strerror or error}.") from error
    if not start:
        raise UsageError(f"weights file {path} is empty. Copy or download it again.")
    _refuse_larger_than_memory(path, size)
    if start.startswith(_ZIP):
        _check_zip(path, size)
        return "zip"
    if start.startswith(_LEGACY):
        return "legacy"
    if start[8:9] == b"{":
        _check_safetensors(path, size, struct.unpack("<Q", start[:8])[0])
        return "safetensors"
    raise UsageError(f"weights file {path} {_what_else(start)}")


def _what_else(start: bytes) -> str:
    for magic, words in _OTHERS.items():
        if start.startswith(magic):
            return words
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page: what was saved is an error, or the page about the file. Download the file itself."
    if text.startswith(b"{"):
        return "is a JSON text. Name the file with the tensors, which lies beside it."
    if start[257:262] == b"ustar":
        return "is a tar archive. Unpack it first: tar -xf"
    if start.startswith(b"\x80"):
        return f"is a pickle that torch.save did not write; loading it could run code, so it is not loaded. {RESAVE}"
    if not start.strip(b"\0"):
        return "begins with nothing but zeros: a download or copy that was not finished. Copy or download it again."
    return "is damaged, or no weight file: it begins neither like safetensors nor like what torch.save writes."


def _refuse_larger_than_memory(path: Path, size: int) -> None:
    import psutil

    memory = psutil.virtual_memory().total
    if size > memory:
        raise UsageError(
            f"weights file {path} has {size / 2**30:.1f} GiB, and this machine {memory / 2**30:.1f} GiB of memory. "
            "Save the network's tensors alone, without optimizer and other networks."
        )


def _check_safetensors(path: Path, size: int, header_bytes: int) -> None:
    """Compare what the header says of the tensors with the file's length."""
    if header_bytes > min(_LONGEST_HEADER, size - 8):
        raise UsageError(f"weights file {path} is cut short or damaged: its header does not end. Copy it again.")
    with path.open("rb") as stream:
        stream.seek(8)
        try:
            header = json.loads(stream.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            needed = 8 + header_bytes + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"weights file {path} is damaged: its header is not that of safetensors.") from error
    if needed > size:
        raise UsageError(
            f"weights file {path} is cut short: its header tells of {needed} bytes, and it has {size}. Copy it again."
        )


def _check_zip(path: Path, size: int) -> None:
    """Refuse archives that are cut short or damaged, that grow when they are unpacked, or are none of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename.partition("/")[2] for entry in entries]
            if any(name == "constants.pkl" or name.startswith("code/") for name in names):
                raise UsageError(f"weights file {path} is a TorchScript archive, a program. {RESAVE}")
            if "data.pkl" not in names:
                raise UsageError(f"weights file {path} is a zip archive, but none that torch.save wrote. {RESAVE}")
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > size:
                raise UsageError(
                    f"weights file {path} grows when it is unpacked, as nothing does that torch.save writes. {RESAVE}"
                )
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise UsageError(
            f"weights file {path} is cut short or damaged ({error}). Copy or download it again."
        ) from error
    if broken is not None:
        raise UsageError(
            f"weights file {path} is damaged: the checksum of {broken} is wrong. Copy or download it again."
        )


def _objects_in(error: Exception) -> str:
    """Say it in our own words: torch's advise to load such a file without protection."""
    found = re.search(r"(?:GLOBAL|class|global) ([\w.]+\.[\w.]+)", str(error))
    what = f"an object of {found[1]}" if found else "more than tensors, or is damaged"
    return f"was refused: it holds {what}. Loading that could run code, so it is not loaded. {RESAVE}"


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    # Torch's advice for what it does not load is to load it without protection.
    return line[:200].rstrip(".") if line and "weights_only" not in line else type(error).__name__


def _flat(values: Mapping[Any, Any], prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """List the tensors under dotted names. Each mapping is visited once: a crafted file may hold one in itself, or many
    times."""
    import torch

    seen.add(id(values))
    for key, value in values.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping) and id(value) not in seen and prefix.count(".") < _DEEPEST:
            yield from _flat(value, f"{prefix}{key}.", seen)


def _refuse_unusual(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse tensors without plain values, and those that claim more values than the file has."""
    import torch

    kind = (
        "sparse"
        if tensor.layout != torch.strided
        else "quantised"
        if tensor.is_quantized
        else "without values"
        if tensor.is_meta
        else None
    )
    if kind:
        raise UsageError(f"weights file {path}: {name} is {kind}. Save plain tensors.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UsageError(f"weights file {path}: {name} claims {tensor.numel()} values, which the file does not have.")
