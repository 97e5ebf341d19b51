"""Service times: durations of batches by size, given, learned or calibrated."""
