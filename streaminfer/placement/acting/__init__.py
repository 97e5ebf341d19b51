"""Use of a plan: configures `Replicas` and Ray, writes manifests, and measures running services."""
