"""Idempotent steps that make a host ready."""
