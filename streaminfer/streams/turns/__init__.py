"""Turns of streams: whose frame is next, and which frames have no time for the next batch."""
