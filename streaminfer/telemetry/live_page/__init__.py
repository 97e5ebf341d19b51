"""Live page: the current state of stacks in a browser, as an ASGI app with its feed and static files."""
