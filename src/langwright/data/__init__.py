"""From files of text to batches of token ids: sources, split, shards, and an order that (seed, step) alone decides."""
