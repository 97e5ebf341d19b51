"""Model repositories of a Triton server: their files, and which of their models are in memory."""
