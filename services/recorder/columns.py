"""Moved to services.recorded.columns."""

from services.recorded.columns import *  # noqa: F403
