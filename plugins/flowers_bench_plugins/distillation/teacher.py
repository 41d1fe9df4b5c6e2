"""The teacher: which finished trial it is, and whether it may teach."""

from __future__ import annotations

from flowers_bench import FinishedTrial, ModelContext, UsageError


def find_teacher(context: ModelContext) -> FinishedTrial:
    """Find the trial that the option `teacher` names. Raises `UsageError` unless it is finished, predicts by a classifier, and was
    trained on the same data."""
    name = context.options.text("teacher")
    try:
        teacher = context.trial(name)
    except UsageError as error:
        raise UsageError(f"teacher: {error} Train one, then say --set teacher=ID.") from error
    if teacher.predictor != "classifier":
        raise UsageError(f"teacher {name} predicts by {teacher.predictor}: its logits were not trained to be right.")
    return teacher
