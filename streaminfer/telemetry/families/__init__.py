"""Label families."""
