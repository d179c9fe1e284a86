"""Comparisons with a question of their own."""
