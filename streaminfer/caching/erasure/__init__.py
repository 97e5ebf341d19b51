"""Erasure from memory and tiers, and what may delay it."""
