"""Answers over HTTP: what a CDN, nginx or a browser may keep of them, and for how long (RFC 9110, 9111, 5861).

Pure functions on plain mappings and bytes: no framework, no clock, no network. `NginxFolder` reads files, for a proof.
"""

from streaminfer.caching.http.addresses import content_path
from streaminfer.caching.http.conditions import answer_conditional
from streaminfer.caching.http.edge_headers import EdgePolicy, edge_headers
from streaminfer.caching.http.entity_tags import entity_tag
from streaminfer.caching.http.nginx_folder import NginxFolder

__all__ = ["EdgePolicy", "NginxFolder", "answer_conditional", "content_path", "edge_headers", "entity_tag"]
