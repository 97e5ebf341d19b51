"""Devices that several batchers share: the choice of the next batch, and the interference between batches."""
