"""Backbones and their weights, layers that several techniques share."""
