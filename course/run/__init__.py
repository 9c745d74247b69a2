"""Lessons without a screen."""
