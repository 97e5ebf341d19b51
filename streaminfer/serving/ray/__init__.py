"""Stacks on Ray Serve: a replica per stack, scaled and routed by queue delay, with streams that move."""
