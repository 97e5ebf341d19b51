"""Erasure from memory and tiers, and the holds and minimum ages that may delay it."""
