"""Answers over HTTP: what a CDN, nginx or a browser may keep of them, and for how long (RFC 9110, 9111, 5861).

Pure functions on plain mappings and bytes: no framework, no clock, no network. Nothing else of streaminfer loads them.
"""

from streaminfer.caching.http.addresses import content_path
from streaminfer.caching.http.conditions import answer_conditional
from streaminfer.caching.http.edge_headers import EdgePolicy, edge_headers
from streaminfer.caching.http.entity_tags import entity_tag

__all__ = ["EdgePolicy", "answer_conditional", "content_path", "edge_headers", "entity_tag"]
