"""docs/plugin-api-policy.md: a range of versions is accepted, and what is to go warns for a release, with the plugin's line."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from flowers_bench import OLDEST_PLUGIN_API, PLUGIN_API, hookspecs
from flowers_bench.contract.host import discover
from flowers_bench.hookspecs import hookspec
from flowers_bench.util.deprecation import Deprecated, deprecated
from flowers_bench.util.errors import UsageError

PLUGIN = (
    "from flowers_bench import Loss, hookimpl\n"
    "@hookimpl\ndef register_losses():\n    return [Loss('mine', 'a loss', build=lambda context: None)]\n"
)
#: What was public in 0.1, but for `flowers_bench.nn`.
BEFORE = {
    "flowers_bench": "PLUGIN_API Augmentation AugmentationContext DataRequest Dataset DatasetSource Loss LossContext Model ModelContext "
    "Option Recipe Split Technique TrialFailed UsageError Variant __version__ hookimpl load_results",
    "flowers_bench.ops": "DeformConv2d OffsetDeformConv2d deform_conv2d kernel",
    "flowers_bench.testing": "Check Nonconformance checks conformance_tests",
    "flowers_bench.hookspecs": "PLUGIN_API PROJECT hookimpl register_models register_losses register_augmentations "
    "register_techniques register_datasets trial_started epoch_finished trial_finished trial_figures",
}
#: What `flowers_bench.nn` gave in 0.1, before it was divided among the techniques.
IN_NN_BEFORE = {
    "Classifier", "CosineLinear", "Distilled", "Embedder", "Extended", "L2Normalize", "LowRank", "Output", "Parallel",
    "PromptedBlocks", "Residual", "freeze", "train_mode",
}  # fmt: skip


def written(folder: Path, head: str = "", body: str = PLUGIN) -> Path:
    (folder / "mine.py").write_text(head + body)
    return folder / "mine.py"


@pytest.mark.parametrize(
    "stated", ["", *(f"FLOWERS_BENCH_API = {n}\n" for n in range(OLDEST_PLUGIN_API, PLUGIN_API + 1))]
)
def test_each_version_of_the_range_is_accepted_without_a_word(tmp_path: Path, stated: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host = discover([written(tmp_path, stated)])
    assert host.plugins["mine"].error is None
    assert "mine" in host.losses


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (
            "0",
            r"is written for plugin API 0; this flowers-bench accepts 1 to 2\. Install a newer version of the plugin",
        ),
        ("99", r"is written for plugin API 99; this flowers-bench accepts 1 to 2\. Install a newer flowers-bench"),
        ("'1'", "FLOWERS_BENCH_API = '1': expected a whole number from 1 to 2"),
        ("True", "FLOWERS_BENCH_API = True: expected a whole number"),
    ],
)
def test_another_version_is_refused_with_what_to_do(tmp_path: Path, stated: str, words: str) -> None:
    host = discover([written(tmp_path, f"FLOWERS_BENCH_API = {stated}\n")])
    assert "deformable" in host.techniques
    assert "mine" not in host.losses
    for asked in ("mine", "another"):  # by the plugin's name, and for what it may have registered
        with pytest.raises(UsageError, match=words):
            host.find("loss", host.losses, asked)


def test_a_plugin_that_states_none_is_refused_once_version_1_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hookspecs, "OLDEST_PLUGIN_API", 2)
    host = discover([written(tmp_path)])
    assert "it states no FLOWERS_BENCH_API, and is taken for plugin API 1" in str(host.plugins["mine"].error)


def test_a_command_that_asks_for_it_exits_with_2_and_others_go_on(tmp_path: Path) -> None:
    file = written(tmp_path, "FLOWERS_BENCH_API = 99\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flowers_bench", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    asked = run("run", "--plugin", str(file))
    assert asked.returncode == 2
    assert "is written for plugin API 99" in asked.stderr
    assert "Traceback" not in asked.stderr
    listed = run("list", "--plugin-file", str(file))
    assert listed.returncode == 0
    assert "broken plugin mine" in listed.stdout
    assert "deformable" in listed.stdout


@pytest.mark.parametrize("module", BEFORE)
def test_what_was_public_still_is(module: str) -> None:
    found = importlib.import_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not [name for name in BEFORE[module].split() if not hasattr(found, name)]


def test_every_name_that_left_nn_is_still_there_and_warns_at_the_plugins_line() -> None:
    import flowers_bench.nn

    gone = IN_NN_BEFORE - set(flowers_bench.nn.__all__)
    assert gone == {"CosineLinear", "Distilled", "Extended", "LowRank", "Parallel", "PromptedBlocks", "Residual"}
    theirs: dict[str, object] = {}
    for name in gone:
        with pytest.warns(
            Deprecated, match=rf"flowers_bench\.nn\.{name} is deprecated, and flowers-bench 0\.3 drops it: copy"
        ) as told:
            exec(compile(f"\n\nfrom flowers_bench.nn import {name}", "/their/plugin.py", "exec"), theirs)
        assert {(one.filename, one.lineno) for one in told} == {("/their/plugin.py", 3)}
        assert issubclass(told[0].category, FutureWarning)
        assert getattr(theirs[name], "__name__", "") == name


def test_an_unknown_name_is_as_unknown_as_ever() -> None:
    with pytest.raises(ImportError, match="cannot import name 'LowRanks'"):
        exec("from flowers_bench.nn import LowRanks", {})


def test_a_hook_that_is_to_go_warns_where_it_is_implemented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @hookspec(warn_on_impl=deprecated("the hook `register_old`", "implement `register_losses`", "0.9"))
    def register_old() -> None: ...

    monkeypatch.setattr(hookspecs, "register_old", register_old, raising=False)
    file = written(tmp_path, body=PLUGIN + "@hookimpl\ndef register_old():\n    return []\n")
    with pytest.warns(
        FutureWarning, match="`register_old` is deprecated, and flowers-bench 0.9 drops it: implement"
    ) as told:
        host = discover([file])
    assert (told[0].filename, told[0].lineno) == (str(file), 5)
    assert "mine" in host.losses


def test_a_plugin_of_version_1_trains_with_a_warning_on_stderr(tmp_path: Path) -> None:
    """Written against docs/plugins.md of 9bcd100: options read by name, a layer out of `flowers_bench.nn`, no number."""
    file = tmp_path / "old.py"
    file.write_text(
        "from flowers_bench import Model, Option, Recipe, Technique, Variant, hookimpl\n"
        "def build(context):\n"
        "    from flowers_bench.nn import Classifier, CosineLinear\n"
        "    backbone = context.backbone.create()\n"
        "    backbone.fc = CosineLinear(backbone.num_features, context.num_classes, context.options['scale'])\n"
        "    return Classifier(backbone)\n"
        "@hookimpl\ndef register_models():\n"
        "    return [Model('old', 'a model', options={'scale': Option(10.0, 'of the cosines')}, build=build)]\n"
        "@hookimpl\ndef register_techniques():\n"
        "    return [Technique('old', 'a technique', (), 'old', 'cross-entropy', 'none', Recipe(epochs=1),\n"
        "                      {'plain': Variant('as it is')}, 'plain')]\n"
    )
    tiny = ("data.species=3", "data.train=2", "data.val=2", "data.test=2", "data.size=16", "image_size=16")
    settings = [word for setting in tiny for word in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "flowers_bench",
        "run",
        "--plugin",
        str(file),
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "runs"),
    ]
    done = subprocess.run(
        [*command, "--backbone", "test_resnet", "--weights", "none", "--data-dir", str(tmp_path / "data"), *settings],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{file}:3: Deprecated: flowers_bench.nn.CosineLinear is deprecated" in done.stderr
