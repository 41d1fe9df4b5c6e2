"""What is measured: quality of predictions, their intervals, cost, speed, energy, robustness."""
