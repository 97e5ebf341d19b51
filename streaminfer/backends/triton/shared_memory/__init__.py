"""Memory that this process and a Triton on the same machine share: regions, and the pool of them."""
