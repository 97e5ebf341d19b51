"""Trial of another model on live traffic: with a share of the requests, or with copies of them."""
