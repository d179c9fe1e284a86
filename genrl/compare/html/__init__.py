"""The report of a comparison as one self-contained page."""
