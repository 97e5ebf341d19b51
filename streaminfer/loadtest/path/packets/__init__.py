"""Real packets between two network namespaces, on the path of a load test."""
