"""Moved to services.recorded.reading."""

from services.recorded.reading import *  # noqa: F403
