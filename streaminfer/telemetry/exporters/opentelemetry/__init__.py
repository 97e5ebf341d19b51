"""OpenTelemetry: metrics built from our buckets at collection, and a span per sampled request."""
