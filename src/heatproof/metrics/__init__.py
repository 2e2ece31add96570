"""Metrics: one file a metric. The formulas are public functions; the class on top holds the settings."""
