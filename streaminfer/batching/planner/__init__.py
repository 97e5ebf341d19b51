"""Planning: chooses the requests of the next batch and the instant of its release."""
