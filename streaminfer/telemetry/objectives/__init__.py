"""Service level objectives, error budgets and alerts."""
