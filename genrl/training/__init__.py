"""Stages, their loops and the run folder; Lightning lives here."""
