"""How many examples a property is tried with; the profiles are those of conftest.py."""

from hypothesis import settings


def num_examples(wanted: int) -> int:
    """What a test asks for in the full lane; in the first lane a tenth, at least three."""
    return max(3, wanted * settings().max_examples // 100)
