"""What `tools/kill.py` kills with: a preloaded library, the states of a disk behind a power cut, small commands."""
