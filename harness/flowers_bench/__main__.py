"""`python -m flowers_bench` is the `flowers-bench` command."""

from flowers_bench.cli import main

main()
