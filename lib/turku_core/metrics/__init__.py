"""Metrics in Prometheus' text form: what is measured, how it is written, how it is scraped."""
