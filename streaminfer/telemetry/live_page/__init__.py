"""The live page: what stacks do now, in a browser. An ASGI app, its feed, and files that load nothing else."""
