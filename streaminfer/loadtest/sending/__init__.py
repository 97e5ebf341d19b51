"""Sending on schedule: loops, timers, sender processes, and the record of what was sent."""
