"""Memory that this process shares with a Triton server on the same machine: regions, and the pool of regions."""
