"""Settings of the property tests of this folder."""

from hypothesis import settings

# The first example of a property pays for torch's start, which is no defect of the property.
settings.register_profile("methods", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("methods")
