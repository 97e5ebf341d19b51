"""Model repositories of a Triton server: writing their files, and loading and unloading their models."""
