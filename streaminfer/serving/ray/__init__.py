"""Stacks on Ray Serve: one stack per replica, scaling and routing by queue delay, and streams that can move."""
