"""For all tests: how long something takes decides nothing, on machines that others use too."""

from hypothesis import HealthCheck, settings

settings.register_profile("kvtier", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvtier")
