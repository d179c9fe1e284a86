"""Objectives side by side: plan the runs, make them, report what differs."""
