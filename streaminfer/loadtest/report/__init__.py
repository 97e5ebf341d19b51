"""Reports of load tests: tails, pictures, files."""
