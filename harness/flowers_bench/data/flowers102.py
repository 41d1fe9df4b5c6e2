"""Oxford Flowers102 (Nilsback & Zisserman 2008): 8,189 photographs, the official split of 1,020 / 1,020 / 6,149.

torchvision knows the files, their MD5 sums and how to download them; this module adds the cache, the checks, and
errors that say what to do where there is no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowers_bench.data.cache import Slice, cached_images
from flowers_bench.data.dataset import DataRequest, Dataset, Split, split_checksum
from flowers_bench.data.decode import decode_image
from flowers_bench.errors import UsageError

if TYPE_CHECKING:
    from torchvision.datasets import Flowers102

COUNTS = {"train": 1020, "val": 1020, "test": 6149}
#: A download that stands still for this long has failed.
STALL_SECONDS = 60.0
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
lotus lotus
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


def load(request: DataRequest) -> Dataset:
    """From `request.path` (never written to), or downloaded into `request.cache_dir`.

    Raises:
        UsageError: a file is missing or has a wrong checksum, or the download failed; says what to do.
    """
    root = request.path or request.cache_dir
    if request.path is None and not _present(root):
        _download(root)
    _check_lists(root)
    found = {name: _torchvision(root, name) for name in COUNTS}
    files = [file for name in COUNTS for file in found[name]._image_files]
    key = _content_key(files, request.stored_side)
    images = cached_images(
        request.cache_dir, "flowers102", key, lambda: _decoded(files, request.stored_side), len(files), request.progress
    )
    splits: dict[str, Split] = {}
    listing: dict[str, Any] = {}
    start = 0
    for name, count in COUNTS.items():
        keys = [file.name for file in found[name]._image_files]
        labels = np.asarray(found[name]._labels, np.int64)
        if len(keys) != count:
            raise UsageError(f"{root}/flowers-102/setid.mat lists {len(keys)} {name} images instead of {count}.")
        splits[name] = Split(Slice(images, start, start + count), labels, keys)
        listing[name] = (keys, labels.tolist())
        start += count
    side = int(np.median([min(images[i].shape[1:]) for i in range(0, len(images), 41)]))
    return Dataset(
        name="flowers102",
        class_names=CLASS_NAMES,
        fingerprint=key,
        split_checksum=split_checksum(listing),
        resolution=f"shortest side {side}",
        notes=_notes(files),
        **splits,
    )


def _present(root: Path) -> bool:
    base = root / "flowers-102"
    return all((base / name).exists() for name in ("setid.mat", "imagelabels.mat", "jpg"))


def _torchvision(root: Path, split: str) -> Flowers102:
    from torchvision.datasets import Flowers102

    try:
        return Flowers102(root, split=split, download=False)
    except (RuntimeError, OSError, ValueError) as error:
        raise UsageError(f"{root} is not a whole copy of Flowers102: {error}. {_by_hand(root)}") from error


def _check_lists(root: Path) -> None:
    """The split and the labels are the official ones, byte for byte."""
    from torchvision.datasets import Flowers102
    from torchvision.datasets.utils import check_integrity

    for name in ("label", "setid"):
        file, md5 = Flowers102._file_dict[name]
        path = root / "flowers-102" / file
        if not check_integrity(path, md5):
            what = "has a wrong checksum" if path.is_file() else "is missing"
            raise UsageError(f"{path} {what} (MD5 {md5} expected). {_by_hand(root)}")


def _download(root: Path) -> None:
    """torchvision's download, into a folder beside the final one: it appears only when everything is there."""
    import shutil
    import socket
    import tempfile

    from filelock import FileLock
    from torchvision.datasets import Flowers102

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".flowers102.lock"):
        if _present(root):
            return
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=".flowers102."))
        previous = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(STALL_SECONDS)  # torchvision's download would wait for ever
            Flowers102(temporary, split="train", download=True)
            (temporary / "flowers-102").replace(root / "flowers-102")
        except Exception as error:  # urllib, sockets, tarfile and torchvision each raise their own kinds
            raise UsageError(
                f"Flowers102 could not be downloaded ({type(error).__name__}: {str(error)[:200]}). {_by_hand(root)}"
            ) from error
        finally:
            socket.setdefaulttimeout(previous)
            shutil.rmtree(temporary, ignore_errors=True)


def _by_hand(root: Path) -> str:
    from torchvision.datasets import Flowers102

    files = "\n".join(
        f"  {Flowers102._download_url_prefix}{file}  (MD5 {md5})" for file, md5 in Flowers102._file_dict.values()
    )
    return (
        f"On a machine with internet fetch\n{files}\ninto a folder {root / 'flowers-102'}, unpack 102flowers.tgz there (it makes jpg/), "
        "and run the same command; or name a folder that holds flowers-102/ with --data FOLDER."
    )


def _content_key(files: list[Path], stored_side: int) -> str:
    """SHA-256 over names and contents of all images, and the stored size."""
    digest = hashlib.sha256(f"flowers102 {stored_side}".encode())
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UsageError(f"image {file} is missing or cannot be read: {error.strerror}.") from error
        digest.update(file.name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _decoded(files: list[Path], shortest_side: int) -> Iterator[np.ndarray]:
    return (decode_image(file, shortest_side) for file in files)


def _notes(files: list[Path]) -> tuple[str, ...]:
    from PIL import Image

    sides = []
    for file in files[::41]:
        with Image.open(file) as image:
            sides.append(min(image.size))
    side = int(np.median(sides))
    if side >= SMALL:
        return ()
    return (
        f"these are {side} px copies of the photographs: a harder problem, not comparable with published full-resolution numbers",
    )
