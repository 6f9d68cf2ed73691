"""Work on a Ray cluster: the executor, and what a worker there does."""
