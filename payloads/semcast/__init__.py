"""Semantic image broadcast to several users over a degraded broadcast channel."""
