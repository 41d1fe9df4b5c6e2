"""The conformance kit finds what it is for: plugins with one mistake each fail that check, and are told what to change."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowers_bench.testing import Check, Nonconformance, checks, conformance_tests
from flowers_bench.util.errors import UsageError

torch.set_num_threads(1)

#: A correct plugin. Each mistake below replaces one piece of its text.
GOOD = """
from flowers_bench import *
from flowers_bench import hookimpl

def build(context):
    import numpy, random, torch, time
    from torch import nn
    from flowers_bench import UsageError
    from flowers_bench.nn import Output

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 48, 3, 2, 1), nn.ReLU())
            self.fc = nn.Linear(48 * 4, context.num_classes)
            self.still = nn.BatchNorm1d(48 * 4).requires_grad_(False)
            self.scale = 1.0
        def forward(self, images):
            embedding = self.still(self.body(images).flatten(1)[:, : 48 * 4])
            return Output(self.fc(embedding), embedding)
    return Net()

def build_loss(context):
    import torch
    import torch.nn.functional as F
    return lambda output, target: F.cross_entropy(output.logits, target)

def image(context):
    from torchvision.transforms import v2
    import torch
    return v2.Resize((context.image_size, context.image_size))

@hookimpl
def register_models():
    return [Model("bad-net", "a net", build=build)]

@hookimpl
def register_losses():
    return [Loss("bad-loss", "a loss", needs=frozenset({"logits"}), build=build_loss)]

@hookimpl
def register_augmentations():
    return [Augmentation("bad-augmentation", "resized", image=image)]

@hookimpl
def register_techniques():
    return [Technique("bad", "for tests", (), "bad-net", "bad-loss", "bad-augmentation", Recipe(),
                      {"plain": Variant("as it is")}, "plain")]
"""
#: The same, with a predictor of its own, by the nearest class mean.
PREDICTING = (
    GOOD.replace('Variant("as it is")', 'Variant("as it is", predictor="bad-predictor")')
    + """
def fit(context, features):
    import torch
    embedding, labels = features.output.embedding, features.labels
    means = torch.stack([embedding[labels == c].mean(0) for c in range(context.num_classes)])
    return lambda output, rows: -(output.embedding[:, None] - means).square().sum(2)

@hookimpl
def register_predictors():
    return [Predictor("bad-predictor", "the nearest mean", fit=fit)]
"""
)
SCORES = "-(output.embedding[:, None] - means).square().sum(2)"
PREDICTOR_MISTAKES = [
    (SCORES, SCORES + "[:, :2]", "predictor 'bad-predictor' on test images gave scores (32, 2), not (32, 4)"),
    (SCORES, SCORES + ".double()", "gave torch.float64 scores: return float32"),
    (SCORES, SCORES + ".log().log()", "NaN or infinite"),
    (SCORES, f"({SCORES}).softmax(0)", "depend on the images beside it"),
    (SCORES, "-(output.embedding.sub_(1)[:, None] - means).square().sum(2)", "writes to the output that it is asked about"),
    ("[embedding[labels", "[embedding.mul_(2)[labels", "writes to the features that it is fitted on"),
    (SCORES, f"torch.from_numpy(({SCORES}).numpy())", "cannot be exported"),
    (SCORES, f"({SCORES} if rows is None else means[:, :1])", "on training images gave scores"),
    ("fit=fit", "fit=fit, views=lambda context: lambda images: [images, images[..., 1:]]", "return tensors of shape (3, 3, 32, 32)"),
    ("fit=fit", "fit=fit, views=lambda context: lambda images: [images.sub_(1)]", "writes to the images that it makes views of"),
    ("fit=fit", "fit=fit, views=lambda context: lambda images: [images - images.mean(0)]", "depend on the images beside it, or on chance"),
]  # fmt: skip
FORWARD = "return Output(self.fc(embedding), embedding)"
LOSS = "return lambda output, target: F.cross_entropy(output.logits, target)"
MISTAKES = [
    ("loads", "from flowers_bench import *", "raise RuntimeError('boom')", "boom"),
    ("does not import torch to be listed", "from flowers_bench import *", "import torch\nfrom flowers_bench import *", "inside the build"),
    ("can be planned", '{"plain": Variant("as it is")}', '{"plain": Variant("as it is", baseline="plan")}', "baseline 'plan'"),
    ("outputs have their shapes", FORWARD, "return self.fc(embedding)", "flowers_bench.nn.Output"),
    ("outputs have their shapes", "context.num_classes)", "7)", "one score per class"),
    ("outputs have their shapes", FORWARD, "return Output(self.fc(embedding).double(), embedding)", "return float32"),
    ("outputs have their shapes", FORWARD, "return Output(self.fc(embedding), embedding[0])", "one vector per image"),
    ("loss is a finite scalar", LOSS, "return lambda output, target: F.cross_entropy(output.logits, target, reduction='none')", "to a scalar"),
    ("loss is a finite scalar", LOSS, "return lambda output, target: F.cross_entropy(output.logits, target) / 0", "inf"),
    ("loss is a finite scalar", LOSS, "return lambda output, target: F.cross_entropy(output.logits.detach(), target)", "do not detach"),
    ("gradients reach every trainable parameter", "self.scale = 1.0", "self.lost = nn.Linear(3, 3)", "lost.weight"),
    ("what is frozen stays bit equal", "embedding = self.still(", "self.still.running_mean.add_(0.1)\n            embedding = self.still(", "still.running_mean"),
    ("what is frozen stays bit equal", "embedding = self.still(", "self.still.weight.data.add_(0.1)\n            embedding = self.still(", "still.weight"),
    ("runs under autocast", FORWARD, "scores = self.fc(embedding)\n            return Output(scores / (scores.element_size() > 2), embedding)", "in float32"),
    ("overfits one batch", "self.body(images)", "self.body(images * 0)", "does not learn"),
    ("repeats with its seed", "self.scale = 1.0", "self.scale = 1.0\n            self.fc.weight.data.mul_(random.random())", "torch's global generator"),
    ("repeats with its seed", "return v2.Resize((context.image_size, context.image_size))",
     "import numpy\n    resize = v2.Resize((context.image_size, context.image_size))\n    return lambda x: (resize(x) * numpy.random.rand()).to(torch.uint8)",
     "torch's global generator"),
    ("evaluation does not depend on the batch", FORWARD, "return Output(self.fc(embedding - embedding.mean(0)), embedding)", "beside it"),
    ("state dict goes round", FORWARD, "self.scale += 0.5 * self.training\n            return Output(self.fc(embedding) * self.scale, embedding)", "register_buffer"),
    ("can be copied", "self.scale = 1.0", "self.scale = 1.0\n            self.stream = (i for i in ())", "copy.deepcopy"),
    ("resumes to the same bits", FORWARD, "self.scale += 0.5 * self.training\n            return Output(self.fc(embedding) * self.scale, embedding)", "model.scale changed while it trained"),
    ("resumes to the same bits", LOSS, "seen = []\n    return lambda output, target: seen.append(1) or F.cross_entropy(output.logits, target) / len(seen)", "loss.seen changed while it trained"),
    ("begin epoch depends on its arguments alone", "def forward(self", "def begin_epoch(self, epoch, epochs):\n            self.scale += 1\n        def forward(self", "model.scale"),
    ("loss says what it needs", LOSS, "return lambda output, target: F.cross_entropy(output.logits, target) + output.embedding.sum() * 1e-3", "needs"),
    ("loss says what it needs", LOSS, "return lambda output, target: F.nll_loss(F.log_softmax(output.logits, 1), target)", "hard_targets"),
    ("loss says what it needs", LOSS, "return lambda output, target: F.cross_entropy(output.logits, target) * (1 + target.ndim)", "they mean the same"),
    ("model says what it needs", "class Net(", "from timm.models.vision_transformer import VisionTransformer\n"
     "    if not isinstance(context.backbone.create(), VisionTransformer):\n        raise UsageError('tokens only')\n    class Net(", "add 'tokens'"),
    ("model says what it needs", 'Model("bad-net", "a net", build', 'Model("bad-net", "a net", frozenset({"conv3x3"}), build', "remove the need"),
    ("model says what it needs", "class Net(", "context.backbone.create().patch_embed\n    class Net(", "raise flowers_bench.UsageError"),
    ("augmentation keeps its word", "return v2.Resize((context.image_size, context.image_size))", "return lambda image: image", "return uint8 (3, 32, 32)"),
    ("augmentation keeps its word", "return v2.Resize((context.image_size, context.image_size))",
     "resize = v2.Resize((context.image_size, context.image_size))\n    return lambda image: resize(image.fill_(3))", "writes to the image"),
    ("augmentation keeps its word", '"resized", image=image', '"resized", image=image, batch=lambda c: (lambda x, t: (x, t.float()))', "soft_targets"),
]  # fmt: skip


def test_a_correct_plugin_passes(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    for check in checks(tmp_path / "good.py"):
        if check.name not in (
            "runs in a process of its own",
            "two ranks agree with one",
            "does not import torch to be listed",
        ):
            check()


def _predictor_check(folder: Path, text: str) -> Check:
    (folder / "bad.py").write_text(text)
    (check,) = [check for check in checks(folder / "bad.py") if check.name == "predictor keeps its word"]
    return check


@pytest.mark.parametrize("change", [("", ""), (SCORES, f"torch.from_numpy(({SCORES}).numpy())")])
def test_a_correct_predictor_passes(tmp_path: Path, change: tuple[str, str]) -> None:
    text = PREDICTING.replace(*change)
    _predictor_check(tmp_path, text.replace("fit=fit", "fit=fit, exportable=False") if change[0] else text)()


@pytest.mark.parametrize(("old", "new", "words"), PREDICTOR_MISTAKES)
def test_a_predictors_mistake_is_found_and_its_name_said(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in PREDICTING
    with pytest.raises(Nonconformance, match=re.escape(words)) as caught:
        _predictor_check(tmp_path, PREDICTING.replace(old, new))()
    assert "predictor 'bad-predictor'" in str(caught.value)


def test_a_predictor_that_no_technique_uses_is_checked_on_its_own(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(PREDICTING.replace(', predictor="bad-predictor"', ""))
    labels = {check.label for check in checks(tmp_path / "bad.py")[2:]}
    assert labels == {"bad/plain", "predictor bad-predictor/alone"}


def test_a_parameter_without_elements_needs_no_gradient(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD.replace("self.scale = 1.0", "self.none = nn.Parameter(torch.empty(0, 3))"))
    (check,) = [c for c in checks(tmp_path / "good.py") if c.name == "gradients reach every trainable parameter"]
    check()


def test_what_registers_no_part_is_still_loaded(tmp_path: Path) -> None:
    (tmp_path / "tracker.py").write_text(
        "from flowers_bench import hookimpl\n@hookimpl\ndef trial_started(trial):\n    pass\n"
    )
    found = checks(tmp_path / "tracker.py")
    assert [check.name for check in found] == ["loads", "does not import torch to be listed"]
    for check in found:
        check()


#: These take seconds to find: one trains to the end, the other starts a Python that imports torch.
SLOW = ("overfits one batch", "does not import torch to be listed")


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        pytest.param(*mistake, id=f"{i} {mistake[0]}", marks=[pytest.mark.slow] if mistake[0] in SLOW else [])
        for i, mistake in enumerate(MISTAKES)
    ],
)
def test_a_mistake_is_found_and_explained(tmp_path: Path, name: str, old: str, new: str, words: str) -> None:
    assert old in GOOD
    (tmp_path / "bad.py").write_text(GOOD.replace(old, new))
    (check,) = [check for check in checks(tmp_path / "bad.py") if check.name == name]
    with pytest.raises(Nonconformance) as caught:
        check()
    assert words in str(caught.value)


#: Correct plugins, as replacements in the text above, that only a fair batch can show to learn.
EPISODES = {  # of three of the four classes, and the mean of each knows three; the loss asks about half of the images
    '"bad-net", "bad-loss",': '"bad-net", "prototypical",',
    'Variant("as it is")': 'Variant("as it is", options={"held_out": 0.25, "temperature": 1.0})',
}
HALF = {
    LOSS: "return lambda output, target: F.cross_entropy(output.logits[::2], target[::2])",
    '"bad-loss", "a loss",': '"bad-loss", "a loss", sampler="pk",',
}
TAUGHT = {  # by one that knows nothing
    FORWARD: "return Output(self.fc(embedding), embedding, torch.zeros(len(images), context.num_classes))",
    '"a net", build': '"a net", provides=frozenset({"logits", "embedding", "teacher"}), build',
    LOSS: "return lambda output, target: F.cross_entropy(output.logits, output.teacher.softmax(1))",
    'needs=frozenset({"logits"})': 'needs=frozenset({"logits", "teacher"})',
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [EPISODES, HALF, TAUGHT], ids=["episodes", "half", "taught"])
def test_a_batch_is_learned_whatever_the_loss_asks(tmp_path: Path, changes: dict[str, str]) -> None:
    """And who sees nothing is found, there too."""
    text = GOOD
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    for name, plugin in (("seeing", text), ("blind", text.replace("self.body(images)", "self.body(images * 0)"))):
        (tmp_path / f"{name}.py").write_text(plugin)
    (seeing,), (blind,) = (
        [check for check in checks(tmp_path / f"{name}.py") if str(check) == "bad/plain: overfits one batch"]
        for name in ("seeing", "blind")
    )
    seeing()
    with pytest.raises(Nonconformance, match="does not learn"):
        blind()


@pytest.mark.slow
def test_a_trial_that_only_fails_in_its_own_process_is_found(tmp_path: Path) -> None:
    """It works where it was written, and not where it is run."""
    gone = f"if os.getpid() != {os.getpid()}: raise RuntimeError('only at home')"
    (tmp_path / "bad.py").write_text("import os\n" + GOOD.replace("class Net(", f"{gone}\n    class Net("))
    (check,) = [check for check in checks(tmp_path / "bad.py") if check.name == "runs in a process of its own"]
    with pytest.raises(Nonconformance, match="only at home"):
        check()


def test_parts_without_a_technique_are_checked_on_their_own(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(GOOD[: GOOD.rindex("@hookimpl")])
    found = checks(tmp_path / "parts.py")
    assert {check.label for check in found[2:]} == {
        "model bad-net/alone",
        "loss bad-loss/alone",
        "augmentation bad-augmentation/alone",
    }
    for check in found:
        if check.name in ("can be planned", "loss is a finite scalar"):
            check()


def test_a_part_that_fits_no_other_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(
        "from flowers_bench import Model, hookimpl\n"
        "@hookimpl\ndef register_models():\n    return [Model('odd-net', '', provides=frozenset(), build=print)]\n"
    )
    with pytest.raises(UsageError, match=r"model 'odd-net' provides nothing, .* Register one, or provide logits"):
        checks(tmp_path / "parts.py")


@pytest.mark.parametrize(
    ("plugin", "words"),
    [("deformible", "Did you mean 'deformable'"), ("deformable/stage9", "unknown variant"), ("gone.py", "existing .py file")],
)  # fmt: skip
def test_what_cannot_be_checked_is_said(plugin: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        checks(plugin)


def test_in_pytest_every_check_is_a_test_and_a_failure_is_only_its_words(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(GOOD.replace("self.scale = 1.0", "self.lost = nn.Linear(3, 3)"))
    test = conformance_tests(tmp_path / "bad.py")
    (mark,) = test.pytestmark  # type: ignore[attr-defined]
    by_name = {str(check): check for check in mark.args[1]}
    assert len(by_name) == 22
    test(by_name["bad/plain: loss is a finite scalar"])
    with pytest.raises(pytest.fail.Exception, match=r"no gradient reaches lost\.bias, lost\.weight") as caught:
        test(by_name["bad/plain: gradients reach every trainable parameter"])
    assert not caught.value.pytrace
    assert caught.value.__context__ is None, "pytest shows it a second time"


def test_in_pytest_a_loss_that_is_no_number_is_said_by_whatever_needs_one(tmp_path: Path) -> None:
    vector = "return lambda output, target: F.cross_entropy(output.logits, target, reduction='none')"
    (tmp_path / "bad.py").write_text(GOOD.replace(LOSS, vector))
    test = conformance_tests(tmp_path / "bad.py")
    by_name = {str(check): check for check in test.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    with pytest.raises(pytest.fail.Exception, match=r"the loss has shape \(16,\): average it to a scalar"):
        test(by_name["bad/plain: state dict goes round"])


def test_in_pytest_a_plugin_that_is_not_installed_is_said(tmp_path: Path) -> None:
    with pytest.raises(pytest.Collector.CollectError, match="pip install -e"):
        conformance_tests("not-installed")


@pytest.mark.slow
def test_an_authors_own_tests(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(GOOD.replace("self.scale = 1.0", "self.lost = nn.Linear(3, 3)"))
    (tmp_path / "test_bad.py").write_text(
        "from flowers_bench.testing import conformance_tests\ntest_it = conformance_tests('bad.py')\n"
        "test_other = conformance_tests('gone.py')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-k", "gradients or scalar", "test_bad.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "gone.py is not a plugin file" in done.stdout
    assert "Traceback" not in done.stdout
    (tmp_path / "test_bad.py").write_text((tmp_path / "test_bad.py").read_text().partition("test_other")[0])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert done.stdout.count("no gradient reaches lost.bias, lost.weight") == 1, done.stdout
    assert "another exception" not in done.stdout


@pytest.mark.slow
def test_an_authors_traceback_is_of_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(GOOD.replace(LOSS, "return lambda output, target: {}['no such key']"))
    (tmp_path / "test_bad.py").write_text(
        "from flowers_bench.testing import conformance_tests\ntest_it = conformance_tests('bad.py')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-k", "scalar", "test_bad.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "KeyError: 'no such key'" in done.stdout
    assert re.search(r"^bad\.py:\d+: KeyError", done.stdout, re.MULTILINE), done.stdout
    assert "collect.py" not in done.stdout, done.stdout
