"""Turn a request, a sweep, a suite or a search into a list of trials."""
