"""What is measured about a trial: quality of its predictions, cost of its training."""
