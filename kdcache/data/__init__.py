"""From a manifest and its cache to batches: examples, inputs, streams, loader."""
