"""What all tests share: hypothesis does not judge by the clock, since the machine may be busy."""

from hypothesis import settings

settings.register_profile("testbed", deadline=None)
settings.load_profile("testbed")
