"""Oxford Flowers102 (Nilsback & Zisserman 2008): 8,189 photographs, the official split of 1,020 / 1,020 / 6,149.

torchvision knows the files, their addresses and MD5 sums; this module adds a download that can be interrupted, the
cache, the checks, and errors that say what to do where there is no network.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flowers_bench.contract.dataset import DataRequest, Dataset, Progress, Split, silent, split_checksum
from flowers_bench.data import installing
from flowers_bench.data.cache import CachedImages, Slice, cached_images
from flowers_bench.data.decode import DECODER, decode_images, image_size
from flowers_bench.data.files import open_named
from flowers_bench.data.hashes import content_hashes, copies_note
from flowers_bench.data.remote_file import RemoteFile
from flowers_bench.util.errors import UsageError

COUNTS = {"train": 1020, "val": 1020, "test": 6149}
#: Below this median, in pixels, a copy of the photographs is called small in every result.
SMALL = 200

_NAMES = """\
pink primrose
hard-leaved pocket orchid
canterbury bells
sweet pea
english marigold
tiger lily
moon orchid
bird of paradise
monkshood
globe thistle
snapdragon
colt's foot
king protea
spear thistle
yellow iris
globe-flower
purple coneflower
peruvian lily
balloon flower
giant white arum lily
fire lily
pincushion flower
fritillary
red ginger
grape hyacinth
corn poppy
prince of wales feathers
stemless gentian
artichoke
sweet william
carnation
garden phlox
love in the mist
mexican aster
alpine sea holly
ruby-lipped cattleya
cape flower
great masterwort
siam tulip
lenten rose
barbeton daisy
daffodil
sword lily
poinsettia
bolero deep blue
wallflower
marigold
buttercup
oxeye daisy
common dandelion
petunia
wild pansy
primula
sunflower
pelargonium
bishop of llandaff
gaura
geranium
orange dahlia
pink-yellow dahlia
cautleya spicata
japanese anemone
black-eyed susan
silverbush
californian poppy
osteospermum
spring crocus
bearded iris
windflower
tree poppy
gazania
azalea
water lily
rose
thorn apple
morning glory
passion flower
lotus
toad lily
anthurium
frangipani
clematis
hibiscus
columbine
desert-rose
tree mallow
magnolia
cyclamen
watercress
canna lily
hippeastrum
bee balm
ball moss
foxglove
bougainvillea
camellia
mallow
mexican petunia
bromelia
blanket flower
trumpet creeper
blackberry lily"""
CLASS_NAMES = tuple(_NAMES.splitlines())


#: torchvision's layout below the root.
_FOLDER = "flowers-102"
_LISTS = ("imagelabels.mat", "setid.mat")
_ARCHIVE = "102flowers.tgz"
#: More than the lists have.
_LIST_BYTES = 1 << 20
#: The splits' names in `setid.mat`.
_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}


def recognises(path: Path) -> bool:
    """Say whether the folder is in torchvision's layout: it holds `flowers-102/setid.mat`, or is that `flowers-102`."""
    return (_root(path) / _FOLDER / "setid.mat").is_file()


def load(request: DataRequest) -> Dataset:
    """Load the dataset from `request.path` (never written to), or download it into `request.cache_dir`.

    Raises:
        UsageError: a file is missing, unreadable or has a wrong checksum, or the download failed; says what to do.
    """
    root = _root(request.path) if request.path else request.cache_dir
    if request.path is None and not request.read_only:
        install(root, _urls(), request.progress)
    splits = _read_splits(_read_lists(root))
    names = [key for keys, _ in splits.values() for key in keys]
    jpg = root / _FOLDER / "jpg"
    hashes = content_hashes(jpg, names, request.cache_dir, request.progress, "Flowers102", read_only=request.read_only)
    images = _cached(request, jpg, names, hashes)
    found = _slices(images, splits, hashes)
    return Dataset(
        train=found["train"],
        val=found["val"],
        test=found["test"],
        name="flowers102",
        class_names=CLASS_NAMES,
        fingerprint=_digest(f"flowers102 {request.stored_side}", names, hashes),
        split_checksum=split_checksum(splits),
        resolution=f"shortest side {int(np.median(images.sizes.min(axis=1)))}",
        notes=tuple(_size_note(jpg, names) + copies_note({s: [hashes[k] for k in splits[s][0]] for s in splits})),
    )


def install(
    root: Path, files: Mapping[str, tuple[str, str]], progress: Progress = silent, stall_seconds: float | None = None
) -> None:
    """Make `root` whole, as `installing.install` does: fetch the archive and both lists, unless they are there.

    Args:
        files: address and MD5 by file name, for the archive and both lists.

    Raises:
        UsageError: what went wrong, the addresses, the checksums, and where to put the files by hand.
    """
    installing.install("Flowers102", root, _FOLDER, _remotes(files), progress, stall_seconds)


def _remotes(files: Mapping[str, tuple[str, str]]) -> list[RemoteFile]:
    lists = [RemoteFile(*files[name], members=(name,)) for name in _LISTS]
    return [*lists, RemoteFile(*files[_ARCHIVE], members=("jpg",), unpacked=True, count=sum(COUNTS.values()))]


def _root(path: Path) -> Path:
    return path.parent if path.name == _FOLDER and (path / "setid.mat").is_file() else path


def _urls() -> dict[str, tuple[str, str]]:
    from torchvision.datasets import Flowers102

    return {file: (Flowers102._download_url_prefix + file, md5) for file, md5 in Flowers102._file_dict.values()}


def _by_hand(root: Path, files: Mapping[str, tuple[str, str]]) -> str:
    return installing.by_hand(root, _FOLDER, _remotes(files))


def _read_lists(root: Path) -> dict[str, bytes]:
    """Read the split and the labels, and check that they are the official ones, byte for byte, and that the images are
    there."""
    files = _urls()
    base = root / _FOLDER
    lists = {}
    for name in _LISTS:
        try:
            with open_named(base / name, "file") as stream:
                lists[name] = stream.read(_LIST_BYTES)
        except UsageError as error:
            raise UsageError(f"{error}\n{_by_hand(root, files)}") from error
        if hashlib.md5(lists[name], usedforsecurity=False).hexdigest() != files[name][1]:
            raise UsageError(
                f"{base / name} has a wrong checksum (MD5 {files[name][1]} expected).\n{_by_hand(root, files)}"
            )
    if not (base / "jpg").is_dir():
        mend = f"Unpack {base / _ARCHIVE} there." if (base / _ARCHIVE).exists() else _by_hand(root, files)
        raise UsageError(f"{base / 'jpg'} is missing.\n{mend}")
    return lists


def _read_splits(lists: Mapping[str, bytes]) -> dict[str, tuple[list[str], list[int]]]:
    """Read file names and labels (from 0) of the official splits."""
    from scipy.io import loadmat

    labels, numbers = (loadmat(io.BytesIO(lists[name]), squeeze_me=True) for name in _LISTS)
    return {
        split: (
            [f"image_{number:05d}.jpg" for number in numbers[name]],
            [int(labels["labels"][number - 1]) - 1 for number in numbers[name]],
        )
        for split, name in _SPLITS.items()
    }


def _cached(request: DataRequest, jpg: Path, names: Sequence[str], hashes: Mapping[str, str]) -> CachedImages:
    return cached_images(
        request.cache_dir,
        "flowers102",
        _digest(f"{DECODER} flowers102 {request.stored_side}", names, hashes),
        lambda: decode_images(
            [os.path.join(jpg, name) for name in names], request.stored_side, {}, [hashes[name] for name in names]
        ),
        len(names),
        request.progress,
        read_only=request.read_only,
    )


def _digest(header: str, names: Sequence[str], hashes: Mapping[str, str]) -> str:
    """Compute the SHA-256 over a header, and names and contents of all images."""
    digest = hashlib.sha256(header.encode())
    for name in names:
        digest.update(name.encode() + bytes.fromhex(hashes[name]))
    return digest.hexdigest()


def _slices(
    images: CachedImages, splits: Mapping[str, tuple[list[str], list[int]]], hashes: Mapping[str, str]
) -> dict[str, Split]:
    found, start = {}, 0
    for name, (keys, labels) in splits.items():
        stop = start + len(keys)
        found[name] = Split(
            Slice(images, start, stop), np.array(labels, np.int64), keys, contents=[hashes[key] for key in keys]
        )
        start = stop
    return found


def _size_note(jpg: Path, names: Sequence[str]) -> list[str]:
    """Note it if these are small copies of the photographs; else give no note."""
    side = int(np.median([min(image_size(jpg / name)) for name in names[::41]]))
    if side >= SMALL:
        return []
    return [
        f"these are {side} px copies of the photographs: a harder problem, not comparable with published full-resolution numbers"
    ]
