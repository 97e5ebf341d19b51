"""The solver of placements: pools and whom they can serve, flows of demand, the exact program, a greedy choice."""
