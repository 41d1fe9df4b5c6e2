"""What a plugin sees of the host, and how plugins are found: techniques, datasets, pictures, hooks."""
