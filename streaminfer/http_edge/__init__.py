"""Responses over HTTP: what a CDN, nginx or a browser may store, and for how long (RFC 9110, 9111, 5861).

Pure functions on plain mappings and bytes, without framework, clock or network. `NginxFolder` reads files, for a proof.
"""

from streaminfer.http_edge.addresses import content_path
from streaminfer.http_edge.conditions import answer_conditional
from streaminfer.http_edge.edge_headers import EdgePolicy, edge_headers
from streaminfer.http_edge.entity_tags import entity_tag
from streaminfer.http_edge.nginx_folder import NginxFolder

__all__ = ["EdgePolicy", "NginxFolder", "answer_conditional", "content_path", "edge_headers", "entity_tag"]
