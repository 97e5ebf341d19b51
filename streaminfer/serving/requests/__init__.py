"""Requests to a model, in both protocols: what they say, the call of the stack, and the response."""
