"""Verdicts on tails, with a stated rate of false alarms."""
