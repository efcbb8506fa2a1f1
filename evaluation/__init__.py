"""Measuring what an edit did: probes are scored, scores become metrics, metrics become tables and plots."""
