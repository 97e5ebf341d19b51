"""Adaptive batching: which requests share a batch, and when it goes."""

from streaminfer.batching.batcher import AdaptiveBatcher
from streaminfer.batching.policy import Decision, Greedy, Policy, Timer
from streaminfer.batching.statistics import BatcherStatistics

__all__ = ["AdaptiveBatcher", "BatcherStatistics", "Decision", "Greedy", "Policy", "Timer"]
