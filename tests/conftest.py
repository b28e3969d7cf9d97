"""What all tests share: Hypothesis judges no example by how long it took on this machine."""

from hypothesis import settings

settings.register_profile("rollwave", deadline=None)
settings.load_profile("rollwave")
