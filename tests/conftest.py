"""For every test."""

from hypothesis import settings

# Wall time is the machine's, not the code's.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
