"""Load balancing over replicas."""
