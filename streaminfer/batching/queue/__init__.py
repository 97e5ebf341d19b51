"""The queue of a batcher: tickets, deadlines and the record of events."""
