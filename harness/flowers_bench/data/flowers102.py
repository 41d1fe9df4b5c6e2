"""Oxford Flowers102 (Nilsback & Zisserman 2008): 8,189 photographs, the official split of 1,020 / 1,020 / 6,149.

torchvision knows the files, their addresses and MD5 sums; this module adds a download that can be interrupted, the
cache, the checks, and errors that say what to do where there is no network.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from flowers_bench.contract.dataset import DataRequest, Dataset, Progress, Split, silent, split_checksum
from flowers_bench.data.cache import CachedImages, Slice, cached_images
from flowers_bench.data.decode import DECODER, decode_images, image_size
from flowers_bench.data.download import fetch, has_md5, unpack
from flowers_bench.data.files import open_named
from flowers_bench.data.hashes import content_hashes, copies_note
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
#: Seconds without a single byte after which a download is given up.
STALL_SECONDS = 60.0
#: Bytes. What is left of a failed download waits for the next attempt, unless it is hardly anything.
_WORTH_KEEPING = 1 << 20


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
    """Make `root` whole: fetch what is missing, unpack the images. Nothing is done where all is there.

    Everything arrives in a hidden folder first, and the images are moved last and at once: an interrupted
    installation is never taken for a finished one, and the next call continues it. Files that somebody put in place
    by hand are used if their checksums are right.

    Args:
        root: created if need be; gets a folder `flowers-102` in torchvision's layout.
        files: address and MD5 by file name, for the archive and both lists.
        progress: shown while loading and unpacking.
        stall_seconds: silence after which a server counts as lost; None: `STALL_SECONDS`.

    Raises:
        UsageError: what went wrong, the addresses, the checksums, and where to put the files by hand.
    """
    base, staging = root / _FOLDER, root / f".{_FOLDER}.partial"
    if _present(base):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".flowers102.lock"):
            if not _present(base):
                _install(base, staging, files, progress, stall_seconds or STALL_SECONDS)
    except UsageError as error:
        raise UsageError(f"Flowers102 could not be installed: {error}\n{_by_hand(root, files)}") from error
    except OSError as error:
        raise UsageError(f"cannot write to {root}: {error}. Choose another place with --data-dir.") from error


def _install(
    base: Path, staging: Path, files: Mapping[str, tuple[str, str]], progress: Progress, stall_seconds: float
) -> None:
    """See `install`; the lock is held."""
    needs_images = not (base / "jpg").exists()
    staging.mkdir(exist_ok=True)
    try:
        place = {}
        for name in (*_LISTS, _ARCHIVE) if needs_images else _LISTS:
            url, md5 = files[name]
            place[name] = base / name if has_md5(base / name, md5) else staging / name
            fetch(url, place[name], md5, progress, stall_seconds)
        if needs_images:
            unpack(place[_ARCHIVE], staging / "jpg", "jpg", sum(COUNTS.values()), progress, files[_ARCHIVE][1])
        base.mkdir(exist_ok=True)
        for name in (*_LISTS, "jpg"):
            if (staging / name).exists():
                (staging / name).replace(base / name)
        shutil.rmtree(staging)
    finally:
        if staging.exists() and all(path.stat().st_size < _WORTH_KEEPING for path in staging.iterdir()):
            shutil.rmtree(staging)


def _root(path: Path) -> Path:
    return path.parent if path.name == _FOLDER and (path / "setid.mat").is_file() else path


def _urls() -> dict[str, tuple[str, str]]:
    from torchvision.datasets import Flowers102

    return {file: (Flowers102._download_url_prefix + file, md5) for file, md5 in Flowers102._file_dict.values()}


def _present(base: Path) -> bool:
    return all((base / name).exists() for name in (*_LISTS, "jpg"))


def _by_hand(root: Path, files: Mapping[str, tuple[str, str]]) -> str:
    listing = "\n".join(f"  curl -LO {url}  # MD5 {md5}" for url, md5 in files.values())
    return (
        f"On a machine with internet run\n{listing}\nput the three files into {root / _FOLDER}/, and run the same "
        f"command again; or name a folder that holds {_FOLDER}/ with --data FOLDER."
    )


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
