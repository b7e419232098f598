"""Inventory and campaign files."""
