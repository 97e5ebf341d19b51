"""Service times: how long a batch of a size takes, given, learned or calibrated."""
