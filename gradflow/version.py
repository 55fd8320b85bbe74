"""The version, below everything that names it."""

VERSION = "0.1.0"
