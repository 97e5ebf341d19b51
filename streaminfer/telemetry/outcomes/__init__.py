"""Outcomes: what users did with responses."""
