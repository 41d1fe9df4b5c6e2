"""What a dataset is: three splits of decoded images with labels, and the facts that stand on every result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from flowers_bench.contract.options import Option, Options, OptionValue, ReadsOptions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


T = TypeVar("T")


class Progress(Protocol):
    """What shows progress, as `rich.progress.track` does."""

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterable[T]:
        """Wrap `total` items, so that it is shown how many of them were taken."""
        ...


def silent(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Show nothing: the `Progress` of who has no terminal."""
    return items


class Images(Protocol):
    """Decoded images: `len(images)` and `images[i]`, a uint8 tensor (3, H, W); H and W may differ per image."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tensor: ...


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        images: N decoded images, uint8 (3, H, W) each.
        labels: int64 array (N,), class indices from 0.
        keys: N stable image names, unique within the dataset: what pairs predictions of two techniques.
        factors: known nuisance factors of each image (N,) by name; empty for photographs.
        contents: N texts, equal exactly where images are made from the same thing, in whatever dataset and under whatever key:
            the SHA-256 of a file, or what a drawn image is drawn from. Empty: not known.
    """

    images: Images
    labels: np.ndarray
    keys: Sequence[str]
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    contents: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class NameLevel:
    """Coarser names of a dataset's classes, such as the families of its species.

    Attributes:
        name: what they are: "family".
        names: G names, each of at least one class.
        of_class: C places in `names`, index = label.
    """

    name: str
    names: Sequence[str]
    of_class: Sequence[int]

    @classmethod
    def of(cls, name: str, names: Sequence[str]) -> NameLevel:
        """Make it from each class's coarser name: C names, index = label. They are in the order in which they first appear."""
        distinct = list(dict.fromkeys(names))
        place = {one: number for number, one in enumerate(distinct)}
        return cls(name, distinct, [place[one] for one in names])


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test split with the facts that identify them.

    Attributes:
        name: what the user asked for (`petals`, `flowers102`, or a folder's name).
        class_names: C names, index = label.
        fingerprint: SHA-256 over everything that decides the pixels and the split (source bytes, split,
            stored size). Two results with one fingerprint saw the same images, but for those that `--shots` left out
            of training.
        split_checksum: SHA-256 over (split, key, label) of all images: the split alone, whatever the pixels.
        resolution: the images' size in words, such as "64x64" or "shortest side 256".
        notes: what must be said wherever a number from this dataset is printed.
        grey_levels: of images of more than 8 bits a sample, which values are black and white, by the kind of image; empty
            for others.
        factor_sweeps: test images made again with one nuisance factor set: by factor, then by value, weakest first;
            under the keys of the test images that they are. Empty for photographs.
        descriptions: C texts, index = label: what each class looks like, for techniques with language. Empty: there are none.
        shown_factors: what is known of the test images and accuracy is shown by after a run: N numbers each, by a plain name such
            as "tilt". Empty for photographs.
        name_levels: coarser names of the classes, finest first; accuracy is measured at each. Empty: there are none.
        class_contents: C texts, equal exactly where classes of two datasets are the same one, as a drawn species is. Empty: not
            known.
    """

    name: str
    class_names: Sequence[str]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    split_checksum: str
    resolution: str
    notes: Sequence[str] = ()
    grey_levels: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    factor_sweeps: Mapping[str, Mapping[float, Split]] = field(default_factory=dict)
    class_contents: Sequence[str] = ()
    shown_factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    descriptions: Sequence[str] = ()
    name_levels: Sequence[NameLevel] = ()
    unlabelled: Images = ()

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    def facts(self) -> dict[str, object]:
        """Give the facts that stand in a result, as plain JSON values."""
        levels = {kind: list(pair) for kind, pair in self.grey_levels.items()}
        return {
            "name": self.name,
            "classes": self.num_classes,
            "n_train": len(self.train),
            "n_val": len(self.val),
            "n_test": len(self.test),
            "fingerprint": self.fingerprint,
            "split_checksum": self.split_checksum,
            "resolution": self.resolution,
            "notes": list(self.notes),
            **({"grey_levels": levels} if levels else {}),
        }


@dataclass(frozen=True)
class DataRequest(ReadsOptions):
    """What a dataset source is asked for.

    Attributes:
        cache_dir: where downloads and decoded-image caches may be written (`--data-dir`).
        path: the folder, or of sources with `files` the file, given as `--data PATH`, or None. Never written to.
        stored_side: decoded images are stored with their shortest side at most this many pixels.
        options: every option of the source, with the default or what `--set data.KEY=VALUE` gave: of the option's type where
            the source declares an `Option`, else text.
        progress: wraps long loops.
        read_only: nothing may be written, downloaded or decoded: `UsageError` where it is not all in `cache_dir` already.
    """

    cache_dir: Path
    path: Path | None
    stored_side: int
    options: Options = field(default_factory=Options)
    progress: Progress = silent
    read_only: bool = False


@dataclass(frozen=True)
class DatasetSource:
    """A dataset that a plugin registers.

    Attributes:
        name: what `--data` takes.
        summary: one line for `flowers-bench list`.
        load: builds the dataset; raises `flowers_bench.UsageError` for anything the user can mend.
        options: what `--set data.KEY=` takes: an `Option` each, or only its default.
        recognises: whether a folder given as `--data PATH` is in this source's layout. The sources are asked in
            order of name, except that `folder`, which takes any, is asked last.
        files: extensions of files that `--data PATH` may name for this source, such as ".csv"; `path` is then the file.
        named: reads the text behind `--data NAME:` as options of this source, whose values are fixed by it: text that names data
            elsewhere. Raises `UsageError` for what it cannot read. None: the source takes no such text.
        backbones: small stand-ins for the techniques' default backbones, by name, where the user names none.
        lr_factors: by backbone, what a learning rate is multiplied by that its paper set for a far larger one. Recipes of suites and
            `--set lr=` stay as they are.
        recipe: recipe fields that suit this data, such as its image size; `--set` overrides them.
        settings: values of parts' options that suit this data, such as how an augmentation crops, for the parts that have
            such options; variants and `--set` override them.
        weights: what `pretrained` means on it, for the backbones that have such weights; `--weights` overrides it.
        max_epochs: at most this many, unless `--set epochs=`; None: as many as the recipe says.
        max_epochs_from_probe: the same where the classifier starts as a linear probe (`classifier_start`).
        floor: a variant, such as `knn/untrained`, that runs beside a technique named alone: what a network reaches here that has
            learned nothing. None: none.
            All of these are printed before a run, and stand in every result.
    """

    name: str
    summary: str
    load: Callable[[DataRequest], Dataset]
    options: Mapping[str, Option | OptionValue] = field(default_factory=dict)
    recognises: Callable[[Path], bool] | None = None
    backbones: Mapping[str, str] = field(default_factory=dict)
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    max_epochs: int | None = None
    max_epochs_from_probe: int | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    weights: str = "pretrained"
    settings: Mapping[str, OptionValue] = field(default_factory=dict)
    floor: str | None = None
    files: Sequence[str] = ()
    named: Callable[[str], Mapping[str, str]] | None = None

    def defaults(self) -> Options:
        """Give every option its default."""
        return Options({name: o.default if isinstance(o, Option) else o for name, o in self.options.items()})

    def option_values(self, given: Mapping[str, OptionValue]) -> Options:
        """Give every option its value: the given one, parsed where an `Option` is declared, or the default.

        Raises:
            UsageError: a value is not valid.
        """
        values = {**self.defaults(), **given}
        return Options(
            {
                name: option.parse(f"data.{name}", values[name]) if isinstance(option, Option) else values[name]
                for name, option in self.options.items()
            }
        )


def split_checksum(splits: Mapping[str, tuple[Sequence[str], Sequence[int]]]) -> str:
    """Compute the SHA-256 over (split, key, label) of all images, in the order of the split's name and then of the key."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        keys, labels = splits[split]
        # As `json.dumps([split, key, label])`, which takes four times as long: there may be hundreds of thousands.
        lines = [f"[{quoted(split)}, {quoted(k)}, {int(n)}]\n" for k, n in sorted(zip(keys, labels, strict=True))]
        digest.update("".join(lines).encode())
    return digest.hexdigest()
