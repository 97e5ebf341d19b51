"""How modules load: at first use, compiled or not."""
