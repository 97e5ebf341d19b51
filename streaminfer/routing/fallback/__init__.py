"""Routing to fallback services."""
