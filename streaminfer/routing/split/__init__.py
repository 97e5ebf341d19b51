"""Trying another model on live traffic: a share of the requests, or copies of them."""
