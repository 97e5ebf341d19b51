"""Cost of requests and batches."""
