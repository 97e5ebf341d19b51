"""Requests to a model, in both protocols: parsing, the call of the stack, and the response."""
