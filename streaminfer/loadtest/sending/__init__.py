"""Sending on schedule: loops, sender processes, and the record of what was sent."""
