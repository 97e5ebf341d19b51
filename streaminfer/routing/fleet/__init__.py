"""What keeps the fleet of `Replicas` up to date: health checks and discovery."""
