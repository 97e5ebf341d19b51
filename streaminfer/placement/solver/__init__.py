"""Solver of placements: pools and the clusters they can serve, flows of demand, the exact program, a greedy choice."""
