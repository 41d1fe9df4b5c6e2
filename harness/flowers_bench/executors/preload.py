"""What the fork server imports once, so that no trial has to: the slow packages, and nothing that computes."""

import timm  # noqa: F401

import flowers_bench.training.trial  # noqa: F401
