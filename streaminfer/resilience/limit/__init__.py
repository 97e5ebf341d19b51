"""Parts of the concurrency limit."""
