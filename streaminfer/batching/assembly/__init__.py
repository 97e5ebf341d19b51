"""Assembly of batches: stacking, padding, buffers, and results back to rows."""
