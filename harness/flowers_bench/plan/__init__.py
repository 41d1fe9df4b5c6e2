"""From a request, a sweep, a suite or a search to the list of trials."""
