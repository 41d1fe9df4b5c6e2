"""docs/faq.md: what it quotes is what the program says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_bench.data.survey import survey
from flowers_bench.ops import _build
from flowers_bench.util.errors import UsageError, shortage

PAGE = (Path(__file__).parents[2] / "docs" / "faq.md").read_text()
QUOTED = re.findall(r"^> (.*)$", PAGE, re.M)
FOLDERS = re.findall(r"^\| `([^`]+)` \|", PAGE, re.M)


def said(message: str, quoted: str) -> bool:
    """Whether the message has all parts of what is quoted, in their order; `...` stands for anything."""
    return re.search(".*".join(map(re.escape, quoted.split("..."))), message, re.S) is not None


def photographs(root: Path, *classes: str, count: int = 4) -> None:
    """Save different photographs of each class."""
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng([place, number]).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


def loose(root: Path) -> None:
    photographs(root, ".")


def too_high(root: Path) -> None:
    root.mkdir()
    (root / "photos.txt").write_text("elsewhere")


def an_empty_class(root: Path) -> None:
    photographs(root, "rose", "tulip")
    (root / "daisy").mkdir()


def few(root: Path) -> None:
    photographs(root, "rose", "tulip", count=2)


def damage(root: Path) -> None:
    photographs(root, "rose", "tulip")
    (root / "rose" / "0.png").write_bytes(b"no picture")


def a_link(root: Path) -> None:
    photographs(root, "rose", "tulip")
    shutil.copy(root / "rose" / "0.png", root.parent / "other.png")
    (root / "rose" / "9.png").symlink_to(root.parent / "other.png")


MISTAKES: tuple[Callable[[Path], None], ...] = (loose, too_high, an_empty_class, few, damage, a_link)


@pytest.mark.parametrize(("make", "quoted"), list(zip(MISTAKES, FOLDERS, strict=True)))
def test_a_folder_is_refused_in_these_words(make: Callable[[Path], None], quoted: str, tmp_path: Path) -> None:
    make(tmp_path / "photos")
    with pytest.raises(UsageError) as caught:
        survey(tmp_path / "photos", 36)
    assert said(str(caught.value), quoted), caught.value


def test_no_compiler_is_said_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.delenv(_build.KERNEL_VARIABLE, raising=False)
    monkeypatch.setattr(_build, "_load_best", fails)
    assert not _build._load.__wrapped__()
    assert said(capsys.readouterr().err, QUOTED[0])


def test_too_little_memory_is_said_so() -> None:
    assert said(shortage(MemoryError()) or "", QUOTED[2])


@pytest.mark.parametrize(
    ("file", "quoted"),
    [("models/weights/source.py", QUOTED[1]), ("executors/local.py", QUOTED[3]), ("report/answer.py", QUOTED[4])],
)
def test_the_other_words_are_in_the_source(file: str, quoted: str) -> None:
    source = (Path(_build.__file__).parents[1] / file).read_text()
    assert all(part.strip() in source for part in quoted.split("...") if part.strip())
