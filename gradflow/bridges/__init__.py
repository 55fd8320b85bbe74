"""Callbacks that put a Recorder into other people's trainers, one file per library."""
