"""MictlanFS: a Virtual Storage Space as an ordinary directory."""

__version__ = "0.1.0"
