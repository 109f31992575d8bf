"""What all of `jebm.data` raises."""

__all__ = ["DataError"]


class DataError(ValueError):
    """Data that cannot be used; the message is one line and names the file, and the array where there is one."""
