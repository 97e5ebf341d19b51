"""Prometheus: a `/metrics` ASGI app in three formats, and a collector for `prometheus_client`."""
