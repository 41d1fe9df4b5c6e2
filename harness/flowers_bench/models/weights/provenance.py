"""Where weights come from that were trained here, and what they must not be evaluated on.

A safetensors file that `flowers-bench export --format weights` wrote says so in its metadata; `--weights trial:ID` takes it
from the run store. Both are data from somebody else: what is read is checked, and nothing in it is executed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.contract.options import OptionValue
from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from flowers_bench.contract.dataset import Dataset

#: Of a safetensors file's metadata.
KEY = "flowers_bench"


@dataclass(frozen=True, eq=False)
class Provenance:
    """The training that weights come from.

    Attributes:
        trial: its id.
        backbone: timm model name.
        model: the part that was trained, and its `options`: what has the tensors that the backbone alone has not.
        dataset: its name, and the `split_checksum` of its split.
        classes: `Dataset.class_contents`.
        images: digests of what its training and validation images were made from, sorted, uint64 (N,); empty: not known.
        summary: all of it in a few words, for people.
    """

    trial: str
    backbone: str
    model: str
    options: Mapping[str, OptionValue]
    dataset: str
    split_checksum: str
    classes: Sequence[str]
    images: np.ndarray
    summary: str

    @classmethod
    def of(
        cls, trial: str, backbone: str, model: str, options: Mapping[str, OptionValue], dataset: Dataset
    ) -> Provenance:
        """Describe weights that `model` was given by training on `dataset`."""
        contents = [*dataset.train.contents, *dataset.val.contents]
        known = bool(dataset.train.contents) and bool(dataset.val.contents or not len(dataset.val))
        summary = f"trained on {dataset.num_classes} classes of {dataset.name}, {len(dataset.train)} images"
        images = digests(contents if known else [])
        return cls(
            trial,
            backbone,
            model,
            dict(options),
            dataset.name,
            dataset.split_checksum,
            tuple(dataset.class_contents),
            images,
            summary,
        )

    def text(self) -> str:
        """Give what `parse` reads."""
        images = base64.b64encode(self.images.astype("<u8").tobytes()).decode()
        values = {name: getattr(self, name) for name in _TEXTS}
        return json.dumps({**values, "options": dict(self.options), "classes": list(self.classes), "images": images})

    @classmethod
    def parse(cls, text: str) -> Provenance:
        """Read what `text` gave. Raises `ValueError` for anything else."""
        import numpy as np

        try:
            values = json.loads(text)
            texts = {name: values[name] for name in _TEXTS}
            options, classes = values["options"], values["classes"]
            images = np.frombuffer(base64.b64decode(values["images"], validate=True), "<u8").astype(np.uint64)
        except (LookupError, TypeError, RecursionError, binascii.Error) as error:
            raise ValueError(f"not as flowers-bench writes it ({error})") from error
        plain = isinstance(options, dict) and all(
            isinstance(v, str | int | float | bool | None) for v in options.values()
        )
        if (
            not plain
            or not isinstance(classes, list)
            or not all(isinstance(t, str) for t in (*texts.values(), *classes))
        ):
            raise ValueError("not as flowers-bench writes it")
        return cls(**texts, options=options, classes=tuple(classes), images=images)


_TEXTS = ("trial", "backbone", "model", "dataset", "split_checksum", "summary")


def digests(contents: Iterable[str]) -> np.ndarray:
    """Hash each text to 64 bits: sorted, uint64 (N,). Two of a million different ones are alike once in 37 million times."""
    import numpy as np

    found = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in contents]
    return np.unique(np.array(found, np.uint64))


def provenance_of(path: Path, metadata: Mapping[str, str]) -> Provenance | None:
    """Read a safetensors file's; None where flowers-bench did not write it. Raises `UsageError` for a damaged one."""
    if KEY not in metadata:
        return None
    try:
        return Provenance.parse(metadata[KEY])
    except ValueError as error:
        raise UsageError(
            f"weights file {path}: what it says of its training is damaged ({error}). Export it again."
        ) from error


def refuse_seen(name: str, source: Provenance, dataset: Dataset) -> tuple[str, ...]:
    """Compare what weights were trained on with what is to be tested on.

    Returns:
        what could not be compared, to be said.

    Raises:
        UsageError: test images, or drawn classes of another split, are among what the weights have seen.
    """
    if source.split_checksum == dataset.split_checksum:
        return ()  # one split, whose test images neither of the two trains on
    shared = set(source.classes) & set(dataset.class_contents)
    if shared:
        raise UsageError(
            f"weights {name} have seen {len(shared)} of the {dataset.num_classes} classes of {dataset.name}: {source.summary}. "
            "An accuracy on them would not say what transfers. Choose other data, such as another --set data.grammar_seed=, "
            "or --weights none."
        )
    test = digests(dataset.test.contents)
    if not len(source.images) or not len(test):
        return (f"weights {name}: whether they were trained on some of these test images cannot be told",)
    import numpy as np

    seen = np.isin(test, source.images).sum()
    if seen:
        raise UsageError(
            f"weights {name} were trained on {seen} of the {len(dataset.test)} test images of {dataset.name}: {source.summary}. "
            "Remove those images, use the split that the weights were trained on, or start from other weights."
        )
    return ()
