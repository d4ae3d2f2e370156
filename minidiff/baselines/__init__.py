"""Other ways to prune, on the same engine: layers, surrogate, skipping, counts and compaction."""
