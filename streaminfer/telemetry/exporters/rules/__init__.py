"""Alert rules, OpenSLO documents and a Grafana dashboard, generated from objectives."""
