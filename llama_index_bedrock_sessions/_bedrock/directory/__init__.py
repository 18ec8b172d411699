"""Directories: how the sessions of a key are found."""
