"""Executors: where trials run. Here: this machine."""
