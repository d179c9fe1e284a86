"""One run: its folder, its stages, its record, and what a finished one answers."""
