"""Presenting: what a run holds, as pictures, panels and text."""
