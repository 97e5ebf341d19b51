"""Retention rules, the tamper-evident log and its reports."""
