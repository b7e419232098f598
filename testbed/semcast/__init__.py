"""Semantic image broadcast, seen from the controller: images, rivals on paper, measures, campaigns."""
