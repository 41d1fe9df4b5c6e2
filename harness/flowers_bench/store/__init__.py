"""What is written of a trial, and the only place that knows its files' names."""
