"""Tables, comparisons, the page and figures; every number in them is computed from the run store."""
