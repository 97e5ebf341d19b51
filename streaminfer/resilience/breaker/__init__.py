"""Parts of the circuit breaker."""
