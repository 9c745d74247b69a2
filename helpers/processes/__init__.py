"""Processes of a lesson: run folders, the supervisor that ends them, and workers."""
