"""Wireless distributed mixture of experts: base station, workers, selection."""
