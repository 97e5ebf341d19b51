"""What a plan does: it configures `Replicas` and Ray, writes manifests, and is fed by what runs."""
