"""Examination: what standing networks say of themselves, from weights and images, untrained."""
