"""Images on their way into a batch: where they come from, how they are decoded and kept, drawn and divided."""
