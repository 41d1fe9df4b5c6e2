"""The checks: each takes a subject and raises `Nonconformance` with what to change, or whatever the plugin raises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowers_bench.testing.learning import (
    gradients_reach_every_trainable_parameter,
    loss_is_a_finite_scalar,
    overfits_one_batch,
    repeats_with_its_seed,
    what_is_frozen_stays_bit_equal,
)
from flowers_bench.testing.lives import (
    begin_epoch_depends_on_its_arguments_alone,
    resumes_to_the_same_bits,
    runs_in_a_process_of_its_own,
    two_ranks_agree_with_one,
)
from flowers_bench.testing.models import (
    can_be_copied,
    evaluation_does_not_depend_on_the_batch,
    model_says_what_it_needs,
    outputs_have_their_shapes,
    runs_under_autocast,
    state_dict_goes_round,
)
from flowers_bench.testing.parts import (
    augmentation_keeps_its_word,
    loss_says_what_it_needs,
    predictor_keeps_its_word,
    step_keeps_its_word,
)
from flowers_bench.testing.subject import Nonconformance, Subject, require
from flowers_bench.util.errors import UsageError

#: pytest leaves this module's functions out of tracebacks: the plugin is to be looked at.
__tracebackhide__ = True


def can_be_planned(subject: Subject) -> None:
    """Check that names, options, needs and recipe fit together."""
    technique, _, variant = subject.label.partition("/")
    value = subject.host.techniques[technique].value
    baseline = value.variants[variant].baseline
    require(
        baseline is None or baseline in value.variants,
        f"its baseline {baseline!r} is no variant of {technique}: the variants are {', '.join(value.variants)}.",
    )
    require(value.default in value.variants, f"the default variant {value.default!r} of {technique} does not exist.")
    require("\n" not in value.summary, "its summary has several lines: `flowers-bench list` shows one.")
    try:
        _ = subject.planned
    except UsageError as error:
        raise Nonconformance(
            f"it cannot be run on a tiny dataset with {subject.backbone or 'a tiny backbone'}: {error} Mend the technique; or, "
            "where it needs another network or an option, give --backbone and --set."
        ) from error


CHECKS: Sequence[Callable[[Subject], None]] = (
    can_be_planned,
    outputs_have_their_shapes,
    loss_is_a_finite_scalar,
    gradients_reach_every_trainable_parameter,
    what_is_frozen_stays_bit_equal,
    overfits_one_batch,
    repeats_with_its_seed,
    evaluation_does_not_depend_on_the_batch,
    state_dict_goes_round,
    can_be_copied,
    runs_under_autocast,
    loss_says_what_it_needs,
    model_says_what_it_needs,
    augmentation_keeps_its_word,
    predictor_keeps_its_word,
    step_keeps_its_word,
    begin_epoch_depends_on_its_arguments_alone,
    resumes_to_the_same_bits,
    runs_in_a_process_of_its_own,
    two_ranks_agree_with_one,
)
