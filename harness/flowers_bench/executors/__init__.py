"""Executors: where trials run. Here: this machine (`local`), or a Ray cluster (`ray`)."""
