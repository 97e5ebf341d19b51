"""Assembly of batches: stacking, padding, buffers, and results cut back into rows."""
