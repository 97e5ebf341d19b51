"""Planning: which requests form the next batch, and when it is released."""
