"""petals, flowers102 and folder: real and made images, splits, fingerprints, and every way they can be wrong."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import Flowers102

from flowers_bench.data import flowers102, folder, petals
from flowers_bench.data.dataset import DataRequest
from flowers_bench.errors import UsageError

PETALS = {"size": 32, "species": 6, "train": 2, "val": 2, "test": 3, "grammar_seed": 0}
FOLDER = {"val": 0.2, "test": 0.2, "split_seed": 0}


def request(cache: Path, path: Path | None = None, **options: Any) -> DataRequest:
    return DataRequest(cache, path, 64, options)


def test_petals_repeat_and_do_not_depend_on_how_many(tmp_path: Path) -> None:
    small = petals.load(request(tmp_path / "a", **PETALS))
    large = petals.load(request(tmp_path / "b", **{**PETALS, "train": 4, "species": 7}))
    for index, key in enumerate(small.train.keys):
        other = large.train.keys.index(key)
        assert torch.equal(small.train.images[index], large.train.images[other])
        assert small.train.factors["scale"][index] == large.train.factors["scale"][other]
    assert small.fingerprint != large.fingerprint
    assert small.split_checksum != large.split_checksum


def test_petals_splits_and_shapes(tmp_path: Path) -> None:
    found = petals.load(request(tmp_path, **PETALS))
    assert (len(found.train), len(found.val), len(found.test), found.num_classes) == (12, 12, 18, 6)
    assert found.train.images[0].shape == (3, 32, 32)
    pixels = [found.train.images[0].float(), found.val.images[0].float(), found.test.images[0].float()]
    assert (pixels[0] - pixels[1]).abs().mean() > 1
    assert (pixels[1] - pixels[2]).abs().mean() > 1


def test_petals_pixels_are_pinned() -> None:
    """Stored results name the renderer: a change of its pixels must come with a new RENDERER."""
    images, _ = petals.render([0, 50, 101], "test", [0, 1, 2], 64)
    assert images.mean((1, 2, 3)).tolist() == pytest.approx(PINNED_MEANS, abs=0.5)


PINNED_MEANS = [71.80, 77.16, 124.28]


def test_twins_share_genes_with_their_family_but_are_not_alike() -> None:
    for family in range(34):
        genes = [vars(petals.species(3 * family + twin)) for twin in range(3)]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            differing = [k for k in genes[a] if genes[a][k] != genes[b][k]]
            assert 1 <= len(differing) <= 6, (family, differing)


def test_another_grammar_gives_other_species() -> None:
    assert petals.species(5, 0) != petals.species(5, 1)


@pytest.mark.parametrize("factor", sorted(petals.FACTORS))
def test_factors_have_their_range_and_act(factor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, factors = petals.render([1] * 64, "train", range(64), 16)
    low, high = petals.FACTORS[factor]
    assert low - 1e-6 <= factors[factor].min()
    assert factors[factor].max() <= high + 1e-6
    before, _ = petals.render([1] * 4, "train", range(4), 32)
    original = petals._factors
    monkeypatch.setattr(
        petals, "_factors", lambda draws: {**original(draws), factor: np.full(len(draws), high, np.float32)}
    )
    after, _ = petals.render([1] * 4, "train", range(4), 32)
    assert np.abs(before.astype(int) - after.astype(int)).mean() > 0.1


@pytest.mark.parametrize(
    ("name", "value"), [("size", "1"), ("size", "x"), ("species", "1"), ("train", "0"), ("test", "1.5")]
)
def test_petals_refuses(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"data.{name}={value}"):
        petals.load(request(tmp_path, **{**PETALS, name: value}))


# flowers102


def test_real_flowers102(shared: Path, tmp_path: Path) -> None:
    found = flowers102.load(request(tmp_path, shared / "data" / "flowers102-64"))
    assert (len(found.train), len(found.val), len(found.test), found.num_classes) == (1020, 1020, 6149, 102)
    assert np.bincount(found.train.labels).tolist() == [10] * 102
    assert found.class_names[0] == "pink primrose"
    assert "64 px" in found.notes[0]
    assert not set(found.train.keys) & set(found.test.keys)


def test_class_names_are_102() -> None:
    assert len(set(flowers102.CLASS_NAMES)) == 102


@pytest.fixture
def copy_of_flowers102(shared: Path, tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    shutil.copytree(
        shared / "data" / "flowers102-64" / "flowers-102", root / "flowers-102", copy_function=shutil.copyfile
    )
    return root


@pytest.mark.parametrize("damage", ["setid", "image", "labels"])
def test_damaged_flowers102_is_refused_by_name(copy_of_flowers102: Path, tmp_path: Path, damage: str) -> None:
    base = copy_of_flowers102 / "flowers-102"
    victim = {
        "setid": base / "setid.mat",
        "labels": base / "imagelabels.mat",
        "image": base / "jpg" / "image_04321.jpg",
    }[damage]
    if damage == "image":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-7] + b"garbage")
    with pytest.raises(UsageError, match=victim.name):
        flowers102.load(request(tmp_path / "cache", copy_of_flowers102))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """A real HTTP server on loopback with a six-image Flowers102; the callable makes it misbehave."""
    site = tmp_path / "site"
    (site / "jpg").mkdir(parents=True)
    for i in range(1, 7):
        Image.new("RGB", (32, 32), (40 * i, 90, 20)).save(site / "jpg" / f"image_{i:05d}.jpg")
    with tarfile.open(site / "102flowers.tgz", "w:gz") as archive:
        archive.add(site / "jpg", "jpg")
    from scipy.io import savemat

    savemat(site / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    savemat(site / "setid.mat", {"trnid": np.array([[1, 2]]), "valid": np.array([[3, 4]]), "tstid": np.array([[5, 6]])})
    mode = ["good"]
    release = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(site))

        def do_GET(self) -> None:
            if self.path.endswith(".tgz") and mode[0] == "stalls":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                release.wait(20)
            elif self.path.endswith(".tgz") and mode[0] == "half":
                data = (site / "102flowers.tgz").read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
            else:
                super().do_GET()

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setattr(Flowers102, "_download_url_prefix", f"http://127.0.0.1:{httpd.server_port}/")
    md5 = {
        name: hashlib.md5((site / name).read_bytes()).hexdigest()
        for name in ("102flowers.tgz", "imagelabels.mat", "setid.mat")
    }
    files = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    monkeypatch.setattr(Flowers102, "_file_dict", {k: (name, md5[name]) for k, name in files.items()})
    monkeypatch.setattr(flowers102, "COUNTS", {"train": 2, "val": 2, "test": 2})
    monkeypatch.setattr(flowers102, "STALL_SECONDS", 1.0)

    def behave(how: str) -> Path:
        mode[0] = how
        if how == "wrong checksum":
            monkeypatch.setattr(Flowers102, "_file_dict", {k: (name, "0" * 32) for k, name in files.items()})
        if how == "gone":
            httpd.shutdown()
            httpd.server_close()
        return tmp_path / "cache"

    yield behave
    release.set()
    httpd.shutdown()


def test_download_works_and_is_not_repeated(server: Callable[[str], Path]) -> None:
    cache = server("good")
    found = flowers102.load(request(cache))
    assert (len(found.train), len(found.test)) == (2, 2)
    server("half")
    assert flowers102.load(request(cache)).fingerprint == found.fingerprint


@pytest.mark.parametrize("how", ["half", "stalls", "wrong checksum", "gone"])
def test_failed_download_leaves_nothing_and_says_what_to_do(server: Callable[[str], Path], how: str) -> None:
    cache = server(how)
    with pytest.raises(UsageError, match=r"102flowers\.tgz") as caught:
        flowers102.load(request(cache))
    assert "MD5" in str(caught.value)
    assert str(cache / "flowers-102") in str(caught.value)
    assert [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == []
    assert socket.getdefaulttimeout() is None


# folder


def fill(root: Path, names: dict[str, int], size: int = 20) -> None:
    rng = np.random.default_rng(len(str(root)))
    for name, count in names.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (size, size, 3)).astype(np.uint8)).save(root / name / f"{i}.png")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        fill(root / split, {"rose": count, "tulip": count})
    return root


def test_folder_with_three_splits(three: Path, tmp_path: Path) -> None:
    found = folder.load(request(tmp_path / "cache", three, **FOLDER))
    assert found.class_names == ["rose", "tulip"]
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.keys[0] == "test/rose/0.png"
    assert folder.load(request(tmp_path / "other", three, **FOLDER)).fingerprint == found.fingerprint


def test_real_flowers17(shared: Path, tmp_path: Path) -> None:
    found = folder.load(request(tmp_path, shared / "data" / "flowers17", **FOLDER))
    assert (len(found.train), len(found.val), len(found.test), found.num_classes) == (680, 340, 340, 17)
    assert min(found.train.images[0].shape[1:]) == 64


def test_changed_image_changes_the_fingerprint_and_the_cache(three: Path, tmp_path: Path) -> None:
    before = folder.load(request(tmp_path / "cache", three, **FOLDER))
    Image.new("RGB", (20, 20), (1, 2, 3)).save(three / "train" / "rose" / "0.png")
    after = folder.load(request(tmp_path / "cache", three, **FOLDER))
    assert before.fingerprint != after.fingerprint
    assert after.train.images[0][:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: shutil.rmtree(r / "val"), "no val/"),
        (lambda r: shutil.rmtree(r / "test"), "no test/"),
        (lambda r: (r / "train" / "empty").mkdir(), "empty has no images"),
        (lambda r: fill(r / "test", {"daisy": 1}), "'daisy' is in test/ but not in train/"),
        (lambda r: (r / "train" / "rose" / "0.png").write_bytes(b"no image"), "0.png"),
        (lambda r: shutil.rmtree(r / "train" / "rose"), "1 class"),
        (lambda r: (r / "train" / "rose" / "link.png").symlink_to("/etc/hostname"), "link that leaves"),
    ],
)
def test_folder_refuses_by_name(three: Path, tmp_path: Path, change: Callable[[Path], object], words: str) -> None:
    change(three)
    with pytest.raises(UsageError, match=words):
        folder.load(request(tmp_path / "cache", three, **FOLDER))


def test_leaked_test_images_are_said(three: Path, tmp_path: Path) -> None:
    shutil.copy(three / "train" / "rose" / "0.png", three / "test" / "rose" / "copy.png")
    (three / "train" / "rose" / "notes.txt").write_text("x")
    notes = folder.load(request(tmp_path / "cache", three, **FOLDER)).notes
    assert any("1 test images also stand in another split" in note for note in notes)
    assert any("1 files" in note for note in notes)


ODD = ["with space", "ünïcödé-花", "-dash", "a" * 250, "<script>alert(1)</script>".replace("/", "|"), "=1+1"]


def test_odd_class_names(tmp_path: Path) -> None:
    root = tmp_path / "odd"
    fill(root, dict.fromkeys(ODD, 8))
    found = folder.load(request(tmp_path / "cache", root, **FOLDER))
    assert sorted(found.class_names) == sorted(ODD)


def test_rule_keeps_images_where_they_are_when_one_is_added(tmp_path: Path) -> None:
    root = tmp_path / "rule"
    fill(root, {"a": 20, "b": 20})
    sides = [
        {k: s for s in ("train", "val", "test") for k in getattr(found, s).keys} for found in _twice(root, tmp_path)
    ]
    assert all(sides[1][key] == side for key, side in sides[0].items())
    assert len(sides[1]) == len(sides[0]) + 1


def _twice(root: Path, tmp_path: Path) -> Iterator[Any]:
    yield folder.load(request(tmp_path / "cache", root, **FOLDER))
    Image.new("RGB", (20, 20), (9, 9, 9)).save(root / "a" / "new.png")
    yield folder.load(request(tmp_path / "cache", root, **FOLDER))


@settings(max_examples=50, deadline=None)
@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_any_share_is_used_or_refused(val: float, test: float) -> None:
    try:
        found = folder._parse({"val": val, "test": test, "split_seed": "3"})
    except UsageError:
        assert not (0 < val < 1 and 0 < test < 1 and val + test < 1)
    else:
        assert 0 < found["val"] + found["test"] < 1
