"""One damaged file of a store of 30 trials: every command names it, shows the other trials, and writes nothing there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from damages import TOKENS, certain, damages, places, with_token
from PIL import Image
from stored import add_stress, outcomes, store_trial

from flowers_bench import cli, load_results
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.identity import Protocol
from flowers_bench.store.reading import parse_json
from flowers_bench.util.errors import Unreadable
from flowers_bench.util.files import write_json

SUITE = """summary = "s"
[[trials]]
technique = ["wise/a", "wise/b"]
[[figures]]
name = "curves"
title = "curves"
draw = "curves"
technique = ["wise/a", "wise/b"]
[[figures]]
name = "pictures"
title = "pictures"
draw = "pictures"
technique = ["wise/a", "wise/b"]
"""
FILES = (
    "config.json",
    "run.json",
    "result.json",
    "history.jsonl",
    "attempts.jsonl",
    "environment.json",
    "failure.json",
    "files.json",
    "predictions.parquet",
    "stress.parquet",
)
#: Damages of the whole test; the fast one takes every so manieth of them.
MANY, EVERY = 300, 19
#: Seconds that all commands may take on one damaged store.
PATIENCE = 300


def make_store(root: Path) -> Path:
    """30 trials that have every file there is: ten techniques of three seeds, one of which never finished."""
    for number, variant in enumerate("abcdefghij"):
        for seed in range(3):
            folder = store_trial(root, f"wise/{variant}", seed, outcomes(seed, 0.5 + 0.04 * number, 60))
            folder.note_attempt(61.5, "done")
            write_json(folder.path / "failure.json", {"kind": "TrialFailed", "error": "no stress"})
            write_json(folder.path / "files.json", {"sha256": {"result.json": "0" * 64}})
            add_stress(folder)
            (folder.path / "figures").mkdir()
            Image.new("RGB", (60, 20), "orange").save(folder.path / "figures" / "seen.png")
    (folder.path / "result.json").unlink()
    searched = store_trial(root / "search", "wise/a", 0, outcomes(0, 0.5, 60), protocol=Protocol(report="none"))
    (searched.path / "predictions.parquet").unlink()
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    (place / "suite.toml").write_text(SUITE)
    Image.new("RGB", (16, 16)).save(place / "image.png")
    return make_store(place / "runs")


@pytest.fixture
def runs(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "runs")


def chosen(runs: Path, label: str = "wise/b", seed: int = 1) -> TrialFolder:
    return next(
        folder for folder in Store(runs).trials() if (folder.labels()[0].text, folder.config().seed) == (label, seed)
    )


def content(root: Path) -> dict[str, str]:
    """Everything in a folder: what kind it is, and of small files what is in it."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        small = path.is_file() and not path.is_symlink() and status.st_size < 1 << 20
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else str(status.st_size)
        found[str(path.relative_to(root))] = f"{status.st_mode} {digest}"
    return found


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command in this process: (exit code, stdout, stderr). What it raises is raised."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["flowers-bench", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def patience() -> Iterator[Callable[[], None]]:
    """Call it before each damage: whatever follows is broken off if it hangs."""

    def ring(signum: int, frame: object) -> None:
        raise AssertionError(f"not done after {PATIENCE} s")

    previous = signal.signal(signal.SIGALRM, ring)
    yield lambda: (signal.alarm(PATIENCE), None)[1]
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("name", FILES)
def test_what_nobody_can_use_is_named(runs: Path, name: str) -> None:
    folder = chosen(runs)
    kept = runs.parent / "kept"
    shutil.copytree(folder.path, kept)
    for kind, damage in certain(name).items():
        damage(folder.path / name, random.Random(0))
        try:
            folder.check()
            said = [str(error) for error in Store(runs).read().damaged]  # seen beside the other trials only
        except Unreadable as error:
            said = [str(error)]
        assert len(said) == 1, kind
        named = name if kind != "a key that is new" else "(stress|predictions).parquet"
        assert re.search(rf"{folder.id}/{named} .*Remove (its folder|it)", said[0]), (kind, said)
        shutil.rmtree(folder.path)
        shutil.copytree(kept, folder.path)


REQUIRED: dict[str, dict[tuple[Any, ...], list[str]]] = {
    "config.json": {
        ("seed",): ['"0"', "true", "-1", "0.5", "null"],
        ("id",): ['"0000000000000000"', "7"],
        ("dataset", "classes"): ["0", "1e400", '"4"'],
        ("dataset", "n_test"): ["-1", "61", str(2**70)],
        ("options",): ["[]", '{"x": {"y": 1}}'],
        ("recipe", "image_size"): ["NaN", "[]"],
        ("recipe", "ema_warmup"): ['"x"', "1"],
        ("schema_version",): ["true", "null", "0", "1", "3"],
    },
    "result.json": {
        ("cost", "seconds"): ["null", "-1", '"x"', "Infinity", "true", "1.7e308"],
        ("cost", "epochs"): ["-1", "0.5"],
        ("test", "top1"): ["1.5", "-0.5", "null", '"x"'],
        ("test", "n"): ["59", "0"],
        ("stress",): ["[]", '{"blur": []}', '{"blur": null}', '{"blur": {"level": 1}}', '{"blur": [{"level": 1}]}'],
        ("stress", "blur", 0, "level"): ["2", "0", '"1"'],
        ("class_names",): ['["a"]', "null", "[1, 2, 3, 4]"],
        ("temperature",): ["0", "-1", "[]"],
        ("hardware", "load_average"): ["[null]", "{}"],
        ("label",): ['"\\ud800"', "9" * 4001],
        ("best_epoch",): ["-1", "null"],
    },
    "run.json": {
        ("plugin_files",): ['"x"', "[1]"],
        ("cache_dir",): ['"\\u0000"', "7"],
        ("command",): ['"x"', "[[]]"],
        ("baseline",): ["{}"],
    },
    "history.jsonl": {
        ("train_loss",): ['"x"', "NaN", "[]", "1.7e308", "-1" + "0" * 200],
        ("epoch",): ["0", "2.5", '"1"', "7"],
        ("seconds",): ["-1", '"x"'],
        ("val_top1",): ["2"],
    },
    "attempts.jsonl": {("seconds",): ["null", "-1", '"x"', "1.7e308"], ("state",): ["null", "1"]},
    "failure.json": {("error",): ["null", "[]"], ("kind",): ["1"]},
    "files.json": {("sha256",): ["null", "[]", '{"a": "b"}', '{"a": 1}']},
    "environment.json": {("threads",): ['"x"', "null"], ("versions",): ["[]"]},
}


@pytest.mark.parametrize(
    ("name", "place", "token"),
    [(name, place, token) for name, fields in REQUIRED.items() for place, tokens in fields.items() for token in tokens],
)
def test_a_value_of_another_form_is_named(
    whole: Path, tmp_path: Path, name: str, place: tuple[Any, ...], token: str
) -> None:
    original = chosen(whole)
    folder = TrialFolder(Path(shutil.copytree(original.path, tmp_path / original.id)))
    text = (folder.path / name).read_text()
    line, *others = text.splitlines() if name.endswith(".jsonl") else [text]
    changed = with_token(json.loads(line), place, token)
    (folder.path / name).write_text("\n".join([changed, *others]) + "\n")
    with pytest.raises(Unreadable, match=rf"{folder.id}/{name} "):
        folder.check()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("config", "result"))])
def test_a_missing_record_is_named(runs: Path, command: Any, name: str) -> None:
    folder = chosen(runs)
    (folder.path / name).unlink()
    code, _, told = command("leaderboard", "--out", runs)
    # Without its result it is a trial that is not finished.
    assert (code, folder.id in told) == ((0, False) if name == "result.json" else (1, True))


@pytest.mark.parametrize("token", [token for token in TOKENS if len(token) > 3])
def test_json_is_what_the_standard_says(token: str) -> None:
    standard = token in (
        "null",
        "true",
        '"text"',
        '"../../../etc/passwd"',
        '"\\u0000"',
        "[null]",
        "1e-320",
        "1.7e308",
        str(2**70),
    )
    try:
        parse_json(token)
    except (ValueError, RecursionError):
        assert not standard or token.startswith('"x')
    else:
        assert standard or token.startswith('"x')


def test_trials_that_contradict_each_other_about_their_images_are_named(tmp_path: Path, command: Any) -> None:
    """Of two, nobody can say which one is right."""
    for seed in range(2):
        store_trial(tmp_path / "runs", "wise/a", seed, outcomes(seed, 0.7, 60))
    folder = chosen(tmp_path / "runs", "wise/a", 1)
    damages("predictions.parquet")["a key that is new"](folder.path / "predictions.parquet", random.Random(0))
    code, _, told = command("leaderboard", "--out", tmp_path / "runs")
    assert code == 1
    assert told.count("its keys and labels are not those of other trials with the same split") == 2
    store_trial(tmp_path / "runs", "wise/a", 2, outcomes(2, 0.7, 60))
    code, shown, told = command("leaderboard", "--out", tmp_path / "runs", "--trials")
    assert told.count("left out") == 1
    assert folder.id in told
    assert len(shown.splitlines()) == 2


LEADERBOARDS = [["--format", format] for format in ("text", "md", "latex", "csv", "json")] + [["--trials"]]
COMPARISONS = ["text", "md", "csv", "json"]


def check_commands(command: Any, whole: Path, runs: Path, folder: TrialFolder, turn: int, *, drawn: bool) -> bool:
    """Run every command, of its formats the one whose turn it is, and with `drawn` those that draw; whether the damage was
    seen."""
    out = runs.parent / "out"
    out.mkdir()
    ids = {found.name for found in runs.iterdir() if found.name != "search"}
    try:
        folder.check()
        seen = bool(Store(runs).read().damaged)
    except Unreadable:
        seen = True
    before = content(runs)
    labels = ["wise/a", "wise/c", "wise/d"]
    asked: list[tuple[list[object], bool]] = [
        (["leaderboard", "--out", runs, *LEADERBOARDS[turn % len(LEADERBOARDS)]], True),
        (["compare", *labels, "--out", runs, "--format", COMPARISONS[turn % len(COMPARISONS)]], True),
        (["show", folder.id, "--out", runs], False),
        (["show", folder.id, "--out", runs, "--format", "json"], False),
        (["merge", runs, "-o", out / "merged"], True),
    ]
    if drawn:
        asked.append((["report", runs, "-o", out / "report.html"], True))
        asked.append((["figures", whole.parent / "suite.toml", runs, "-o", out / "figures"], True))
    for arguments, shows_others in asked:
        code, shown, told = command(*arguments)
        assert code == int(seen), (arguments, code, told)
        assert (folder.id in told) == seen, (arguments, told)
        assert "Traceback" not in told
        assert shown or not shows_others, arguments
    if seen:
        assert command("predict", folder.id, whole.parent / "image.png", "--out", runs)[0] == 1
        assert folder.id in command("export", folder.id, "--out", runs, "--format", "pt2", "-o", out / "m.pt2")[2]
    if drawn:
        page = (out / "report.html").read_text(encoding="utf-8")
        assert "wise/a" in page
        assert (f"{folder.id}/" in page) == seen
    assert {path.name for path in (out / "merged").iterdir()} == ids - ({folder.id} if seen else set()) | {"search"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        table = load_results(runs)
    assert any(folder.id in str(warning.message) for warning in said) == seen
    unfinished = {found for found in ids if not os.path.lexists(runs / found / "result.json")}
    assert set(table["id"]) == ids - unfinished - ({folder.id} if seen else set())
    assert content(runs) == before, "a command wrote into the store"
    assert {path.name for path in runs.parent.iterdir()} <= {runs.name, "out"}, "a command wrote beside the store"
    shutil.rmtree(out)
    return seen


def damaged_once(command: Any, whole: Path, tmp_path: Path, turn: int, *, drawn: bool) -> bool:
    """Damage one file of a copy of the store, and run the commands; whether they saw it."""
    rng = random.Random(turn)
    runs = Path(shutil.copytree(whole, tmp_path / f"runs{turn}"))
    folder = rng.choice([folder for folder in Store(runs).trials() if folder.finished()])
    name = FILES[turn % len(FILES)]
    kind, damage = rng.choice(list(damages(name).items()))
    damage(folder.path / name, rng)
    try:
        return check_commands(command, whole, runs, folder, turn, drawn=drawn)
    except BaseException as error:
        raise AssertionError(f"turn {turn}, {folder.id}/{name}, {kind}") from error
    finally:
        shutil.rmtree(runs)


@pytest.mark.parametrize("turn", range(0, MANY, EVERY))
def test_commands_name_a_damaged_trial_and_show_the_others(
    command: Any, whole: Path, tmp_path: Path, patience: Callable[[], None], turn: int
) -> None:
    patience()
    damaged_once(command, whole, tmp_path, turn, drawn=turn % 3 == 0)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_commands_name_any_of_300_damages(
    command: Any, whole: Path, tmp_path: Path, patience: Callable[[], None]
) -> None:
    seen, wrong = 0, []
    for turn in range(MANY):
        patience()
        try:
            seen += damaged_once(command, whole, tmp_path, turn, drawn=turn % 7 == 0)
        except AssertionError as error:
            wrong.append(f"{error}: {error.__cause__!r:.2000}")
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert not wrong, "\n".join(wrong)
    assert seen > MANY // 2


def test_a_history_that_lost_its_end_is_named(runs: Path) -> None:
    folder = chosen(runs)
    path = folder.path / "history.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    with pytest.raises(Unreadable, match=r"it has 2 epochs; result\.json tells of epoch 3 of 3"):
        folder.check()


def test_a_damaged_picture_is_named_and_the_trial_shown(runs: Path, command: Any, tmp_path: Path) -> None:
    folder = chosen(runs, seed=0)
    picture = folder.path / "figures" / "seen.png"
    picture.unlink()
    os.mkfifo(picture)
    code, _, told = command("report", runs, "-o", tmp_path / "report.html")
    assert code == 1
    assert "seen.png cannot be read: it is a pipe, not a file. Remove it" in told
    assert folder.id in (tmp_path / "report.html").read_text()


def test_names_that_are_not_unicode_are_shown_escaped(runs: Path, command: Any, tmp_path: Path) -> None:
    folder = chosen(runs, seed=0)
    (folder.path / "figures" / "seen.png").rename(os.fsdecode(os.fsencode(folder.path) + b"/figures/s\xff.png"))
    shutil.copytree(folder.path, os.fsdecode(os.fsencode(runs) + b"/copy\xff"))
    code, _, told = command("report", runs, "-o", tmp_path / "report.html")
    assert code == 1
    assert "copy\\udcff/config.json is not of the trial" in told
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "copy\\udcff/config.json" in page
    assert "s\\udcff" in page


def test_shares_are_of_the_figures_in_the_result(tmp_path: Path) -> None:
    folder = store_trial(
        tmp_path, "wise/a", 0, outcomes(0, 0.5, 60), result={"retrieval": {"recall_at_1": 0.5, "map_at_r": 0.25}}
    )
    path = folder.path / "predictions.parquet"
    table = pd.read_parquet(path)
    for shares, fault in (
        ({"recall_at_1": 0.5, "map_at_r": 0.25}, None),
        ({"recall_at_1": 0.5, "map_at_r": 0.5}, "the mean of map_at_r is not that in result.json"),
        ({"recall_at_1": 0.5}, "it has shares of recall_at_1; result.json has figures of recall_at_1 and map_at_r"),
    ):
        table.assign(**shares).to_parquet(path, index=False)
        if fault is None:
            folder.check()
        else:
            with pytest.raises(Unreadable, match=fault):
                folder.check()


def test_a_device_is_not_replaced_by_the_page(runs: Path, command: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, _, told = command("report", runs, "-o", tmp_path / "pipe")
    assert code == 2
    assert "pipe cannot be written: it is a pipe, not a file" in told
    assert (tmp_path / "pipe").is_fifo()


def test_a_picture_of_somebody_else_is_not_shown(runs: Path, command: Any, tmp_path: Path) -> None:
    folder = chosen(runs, seed=0)
    Image.new("RGB", (77, 33), "red").save(tmp_path / "private.png")
    shutil.rmtree(folder.path / "figures")
    (folder.path / "figures").symlink_to(tmp_path)
    code, _, told = command("report", runs, "-o", tmp_path / "report.html")
    assert code == 1
    assert "figures is not a folder" in told
    assert "private of wise/b" not in (tmp_path / "report.html").read_text()


def test_a_record_that_is_all_surrogates_does_not_stop_the_page(runs: Path, command: Any, tmp_path: Path) -> None:
    folder = chosen(runs)
    record = json.loads((folder.path / "result.json").read_text())
    (folder.path / "result.json").write_text(with_token(record, ("class_names", 0), '"\\ud800"'))
    code, _, told = command("report", runs, "-o", tmp_path / "report.html")
    assert code == 1
    assert f"{folder.id}/result.json cannot be read: " in told
    assert places(record)
