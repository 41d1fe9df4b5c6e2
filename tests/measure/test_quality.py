"""Quality of predictions, each figure against torchmetrics, scikit-learn or a naive float64 loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, classification_report, f1_score, log_loss, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from flowers_bench.contract.dataset import NameLevel
from flowers_bench.measure.quality import (
    BINS,
    PerClass,
    calibration_error,
    calibration_error_if_calibrated,
    calibration_shares,
    chance_right,
    confusion_matrix,
    correct_at_level,
    f1_shares,
    fit_temperature,
    most_confused,
    probability_quality,
    quality,
    quality_by_class,
)
from flowers_bench.measure.statistics import image_mean

torch.set_num_threads(1)


def predictions(seed: int, n: int, classes: int, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, classes) float32 that favour the label by `skill`, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, 2, (n, classes))
    logits[np.arange(n), labels] += skill
    return logits.astype(np.float32), labels


CASES = pytest.mark.parametrize(("seed", "n", "classes"), [(0, 400, 6), (1, 37, 9), (2, 7, 6), (3, 1000, 102)])


@CASES
def test_accuracy_f1_and_likelihood_agree_with_scikit_learn(seed: int, n: int, classes: int) -> None:
    logits, labels = predictions(seed, n, classes)
    found, chosen = quality(logits, labels), logits.argmax(1)
    assert found.top1 == pytest.approx(accuracy_score(labels, chosen))
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(classes)))
    assert found.macro_f1 == pytest.approx(f1_score(labels, chosen, average="macro", zero_division=0))
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert found.nll == pytest.approx(log_loss(labels, probabilities, labels=range(classes)))


@CASES
def test_accuracy_at_coarser_names_agrees_with_scikit_learn(seed: int, n: int, classes: int) -> None:
    logits, labels = predictions(seed, n, classes)
    families, kingdoms = ([f"{number // size}" for number in range(classes)] for size in (2, 4))
    levels = [NameLevel.of("family", families), NameLevel.of("kingdom", kingdoms)]
    found = quality_by_class(logits, labels, name_levels=levels).name_levels
    assert found is not None
    for name, coarse in (("family", np.array(families)), ("kingdom", np.array(kingdoms))):
        assert found[name].top1 == pytest.approx(accuracy_score(coarse[labels], coarse[logits.argmax(1)]))
        assert found[name].names == len(set(coarse))
    assert found["kingdom"].top1 >= found["family"].top1 >= quality(logits, labels).top1
    assert quality_by_class(logits, labels).name_levels is None


def test_a_tie_within_a_coarser_name_does_not_count_against_it() -> None:
    logits, of_class = np.array([[3, 3, 1], [3, 1, 3]], np.float32), np.array([0, 0, 1])
    assert correct_at_level(logits, np.array([0, 0]), of_class).tolist() == [True, False]


@CASES
def test_figures_agree_with_torchmetrics(seed: int, n: int, classes: int) -> None:
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = predictions(seed, n, classes)
    found, given_ = quality(logits, labels), (torch.from_numpy(logits).double(), torch.from_numpy(labels), classes)
    recall = metrics.multiclass_recall(*given_, average="none")[np.unique(labels)].mean()
    assert found.mean_per_class == pytest.approx(float(recall))
    assert found.top1 == pytest.approx(float(metrics.multiclass_accuracy(*given_, average="micro")))
    assert found.macro_f1 == pytest.approx(float(metrics.multiclass_f1_score(*given_)))
    error = metrics.multiclass_calibration_error(*given_, n_bins=BINS, norm="l1")
    assert found.ece == pytest.approx(float(error), abs=1e-6)
    assert confusion_matrix(logits, labels).toarray().tolist() == metrics.multiclass_confusion_matrix(*given_).tolist()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 90), classes=st.integers(2, 8), skill=st.floats(-2, 9))
def test_brier_and_calibration_are_their_definitions(seed: int, n: int, classes: int, skill: float) -> None:
    logits, labels = predictions(seed, n, classes, skill)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    squares = [
        sum((p - (c == y)) ** 2 for c, p in enumerate(row)) for row, y in zip(probabilities, labels, strict=True)
    ]
    found = quality(logits, labels)
    assert found.brier == pytest.approx(math.fsum(squares) / n)
    images = sorted((max(row), int(row.argmax() == y)) for row, y in zip(probabilities, labels, strict=True))
    wide = [[(p, hit) for p, hit in images if b / BINS < p <= (b + 1) / BINS] for b in range(BINS)]
    assert found.ece == pytest.approx(_gaps(wide, n))
    even: list[list[tuple[float, int]]] = [[] for _ in range(BINS)]
    for rank, image in enumerate(images):
        even[rank * BINS // n].append(image)
    assert max(map(len, even)) - min(map(len, even)) <= 1
    assert found.ece_adaptive == pytest.approx(_gaps(even, n))


def _gaps(bins: list[list[tuple[float, int]]], n: int) -> float:
    """Sum over bins of (images in it / n) * |mean confidence - accuracy|."""
    return sum(
        len(b) / n * abs(math.fsum(p for p, _ in b) / len(b) - sum(hit for _, hit in b) / len(b)) for b in bins if b
    )


#: Few values, so that many are equal.
TIED = st.integers(1, 60).flatmap(
    lambda n: st.tuples(arrays(float, n, elements=st.sampled_from([0.25, 0.5, 0.51, 1.0])), arrays(bool, n))
)


@settings(deadline=None, max_examples=80)
@given(TIED, st.randoms(use_true_random=False))
def test_calibration_errors_do_not_depend_on_the_order_of_images(images: tuple, random: object) -> None:
    confidence, correct = images
    order = np.array(random.sample(range(len(correct)), len(correct)))  # type: ignore[attr-defined]
    for adaptive in (False, True):
        found = calibration_error(confidence, correct, adaptive=adaptive)
        assert calibration_error(confidence[order], correct[order], adaptive=adaptive) == pytest.approx(
            found, abs=1e-12
        )


def test_images_of_one_confidence_share_a_bin() -> None:
    confidence, correct = np.full(45, 0.8), np.arange(45) < 30
    assert calibration_error(confidence, correct, adaptive=True) == pytest.approx(0.8 - 30 / 45)


@settings(deadline=None, max_examples=30)
@given(arrays(float, st.integers(1, 9), elements=st.floats(0.05, 1)), st.booleans())
def test_error_of_a_calibrated_model_is_the_mean_over_all_outcomes(confidence: np.ndarray, adaptive: bool) -> None:
    expected = 0.0
    for outcome in itertools.product((False, True), repeat=len(confidence)):
        correct = np.array(outcome)
        chance = np.where(correct, confidence, 1 - confidence).prod()
        expected += chance * calibration_error(confidence, correct, adaptive=adaptive)
    assert calibration_error_if_calibrated(confidence, adaptive=adaptive) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("images", "least", "most"), [(340, 0.055, 0.063), (6149, 0.013, 0.016)])
def test_a_calibrated_model_has_a_calibration_error_by_the_number_of_images(
    images: int, least: float, most: float
) -> None:
    """About 6 % at 340 images where confidences are spread; found again by drawing outcomes."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, images)
    found = calibration_error_if_calibrated(confidence)
    drawn = [calibration_error(confidence, rng.random(images) < confidence) for _ in range(2000)]
    assert least < found < most
    assert found == pytest.approx(np.mean(drawn), rel=0.02)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 90), classes=st.integers(2, 8))
def test_shares_have_the_figure_as_their_mean_and_are_its_slopes(seed: int, n: int, classes: int) -> None:
    """Slopes: an image counted once more, a millionth of the time, moves the figure by its share's excess."""
    logits, labels = predictions(seed, n, classes)
    predicted = logits.argmax(1)
    shares = f1_shares(predicted, labels, classes)
    assert shares.mean() == pytest.approx(quality(logits, labels).macro_f1)
    image, weights = seed % n, np.ones(n)
    weights[image] += 1e-6 * n
    weighted = f1_score(labels, predicted, average="macro", sample_weight=weights, zero_division=0)
    assert weighted - shares.mean() == pytest.approx(1e-6 * (shares[image] - shares.mean()), rel=1e-2, abs=1e-9)
    confidence, right = softmax(logits.astype(float), axis=1).max(1), chance_right(logits, labels)
    for adaptive in (False, True):
        found = calibration_shares(confidence, right, adaptive=adaptive)
        assert found.mean() == pytest.approx(calibration_error(confidence, right, adaptive=adaptive))


def test_of_equal_scores_one_is_as_good_as_drawn() -> None:
    scores, labels = np.array([[1.0, 1, 0], [2, 0, 0], [0, 0, 0], [0, 3, 0]]), np.array([1, 0, 2, 0])
    assert chance_right(scores, labels).tolist() == [0.5, 1, pytest.approx(1 / 3), 0]
    constant = probability_quality(np.zeros((60, 4)), np.repeat(np.arange(4), 15)[::-1])
    assert constant.ece == pytest.approx(0, abs=1e-12), "it promises one in four, and so it is, whatever the class"


def test_brier_agrees_with_scikit_learn_on_two_classes() -> None:
    from sklearn.metrics import brier_score_loss

    logits, labels = predictions(0, 60, 2)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert quality(logits, labels).brier == pytest.approx(2 * brier_score_loss(labels, probabilities[:, 1]))


@pytest.mark.parametrize("values", [1, 20, 100])
def test_figures_do_not_depend_on_how_many_images_are_judged_at_once(
    values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels = predictions(0, 60, 9)
    at_once = quality(logits, labels), probability_quality(logits, labels, 0.7), fit_temperature(logits, labels)
    monkeypatch.setattr("flowers_bench.measure.quality.BLOCK", values)
    assert at_once == (
        quality(logits, labels),
        probability_quality(logits, labels, 0.7),
        fit_temperature(logits, labels),
    )


def test_a_calibrated_classifier_has_no_calibration_error_and_an_overconfident_one_has() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (20000, 5))
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits, axis=1)])
    honest, bold = probability_quality(logits, labels), probability_quality(5 * logits, labels)
    assert max(honest.ece, honest.ece_adaptive) < 0.02
    assert min(bold.ece, bold.ece_adaptive) > 0.15
    assert honest.brier < bold.brier
    assert honest.nll < bold.nll


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.05, 40))
def test_temperature_is_the_minimum_and_undoes_a_scale(seed: int, scale: float) -> None:
    logits, labels = predictions(seed, 200, 5)
    found, scaled = fit_temperature(logits, labels), fit_temperature(scale * logits, labels)
    assert found is not None
    assert scaled == pytest.approx(scale * found, rel=1e-3)

    def loss(inverse: np.ndarray) -> float:
        return -float(log_softmax(logits.astype(float) * inverse[0], axis=1)[np.arange(200), labels].mean())

    reference = minimize(loss, [1.0], bounds=[(1e-6, None)]).x[0]
    assert found == pytest.approx(1 / reference, rel=1e-2)
    assert loss(np.array([1 / found])) <= loss(np.array([reference])) + 1e-9


def test_temperature_recovers_calibration_of_new_images() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, (4000, 5))
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits, axis=1)])
    temperature = fit_temperature(3 * logits[:2000], labels[:2000])
    assert temperature == pytest.approx(3, rel=0.1)
    before = probability_quality(3 * logits[2000:], labels[2000:])
    after = probability_quality(3 * logits[2000:], labels[2000:], temperature)
    assert after.ece < before.ece / 3
    assert after.nll < before.nll


def test_a_perfect_validation_split_has_no_temperature() -> None:
    assert fit_temperature(np.eye(4), np.arange(4)) is None
    assert fit_temperature(np.eye(4)[[1, 0, 2, 3]], np.arange(4)) is not None


def test_scores_that_say_nothing_have_no_temperature() -> None:
    assert fit_temperature(np.zeros((40, 4)), np.arange(40) % 4) is None
    logits, labels = predictions(0, 200, 5, skill=-6)
    assert fit_temperature(logits, labels) is None, "against the labels, the hottest is the best"


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_temperature_follows_scores_of_any_size(scale: float) -> None:
    logits, labels = predictions(0, 200, 5)
    assert fit_temperature(scale * logits.astype(float), labels) == pytest.approx(
        scale * fit_temperature(logits, labels), rel=1e-4
    )


def test_per_class_table_agrees_with_scikit_learn() -> None:
    logits, labels = predictions(0, 300, 7)
    report = classification_report(labels, logits.argmax(1), output_dict=True, zero_division=0)
    table = quality_by_class(logits, labels).per_class
    for c in range(7):
        row = report[str(c)]
        expected = (row["support"], row["precision"], row["recall"], row["f1-score"])
        assert (table.n[c], table.precision[c], table.recall[c], table.f1[c]) == pytest.approx(expected)


def test_what_is_a_share_of_nothing_is_absent() -> None:
    logits = np.eye(4)[[0, 0, 1]]
    labels = np.array([0, 2, 1])
    table = PerClass.of(confusion_matrix(logits, labels)).metrics()
    assert table.n == [1, 1, 1, 0]
    assert table.precision == [0.5, 1, None, None]
    assert table.recall == [1, 1, 0, None]
    assert table.f1 == [pytest.approx(2 / 3), 1, 0, None]
    assert quality(logits, labels).macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_confusions_are_named_largest_first() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    chosen = np.array([1, 1, 0, 2, 1, 0])
    matrix = confusion_matrix(np.eye(3)[chosen], labels)
    assert matrix.toarray().tolist() == sklearn_confusion_matrix(labels, chosen).tolist()
    assert most_confused(matrix) == [(0, 1, 2), (1, 2, 1), (2, 0, 1)]
    assert most_confused(confusion_matrix(np.eye(3), np.arange(3))) == []


def test_scores_that_are_no_probabilities_are_not_judged_as_such() -> None:
    logits, labels = predictions(0, 50, 6)
    assert set(quality(logits, labels).json()) - set(quality(logits, labels, probabilities=False).json()) == {
        "nll",
        "brier",
        "ece",
        "ece_adaptive",
        "ece_if_calibrated",
        "ece_adaptive_if_calibrated",
    }


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_intervals_of_macro_f1_and_calibration_errors_cover_other_images_and_seeds(seeds: int) -> None:
    """And no worse with more seeds, as intervals over seeds alone do. What is covered is the mean over test sets of this
    size."""
    rng = np.random.default_rng(0)

    def shares(count: int) -> dict[str, np.ndarray]:
        labels = rng.integers(0, 6, 300)
        common = rng.normal(0, 1.5, (300, 6))
        found = []
        for _ in range(count):
            logits = common + rng.normal(0, 1, (300, 6))
            logits[np.arange(300), labels] += 2 + 0.3 * rng.normal() * (seeds > 1)
            confidence, right = softmax(logits, axis=1).max(1), chance_right(logits, labels)
            found.append(
                (
                    f1_shares(logits.argmax(1), labels, 6),
                    calibration_shares(confidence, right),
                    calibration_shares(confidence, right, adaptive=True),
                )
            )
        return dict(zip(("macro_f1", "ece", "ece_adaptive"), map(np.stack, zip(*found, strict=True)), strict=True))

    many = [shares(1) for _ in range(1500)]
    runs = 300
    drawn = [shares(seeds) for _ in range(runs)]
    for name in ("macro_f1", "ece", "ece_adaptive"):
        truth = np.mean([one[name].mean() for one in many])
        intervals = [image_mean(one[name], 1.0) for one in drawn]
        hits = np.mean([found.low <= truth <= found.high for found in intervals])
        assert hits >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs), name
