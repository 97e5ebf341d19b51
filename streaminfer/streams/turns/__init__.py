"""Turns of streams: the fair order of streams, and frames that have no time for the next batch."""
