"""The kernel sources, shipped so that they can be compiled on first use (see `flowers_bench.ops`)."""
