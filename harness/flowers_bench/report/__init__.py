"""Tables, comparisons, the page and figures, all computed from the run store and never typed."""
