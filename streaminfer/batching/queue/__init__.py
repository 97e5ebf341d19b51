"""The queue of a batcher: tickets, deadlines, the record of events."""
