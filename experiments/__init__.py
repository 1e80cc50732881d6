"""Launchers: text in (flags, presets), objects out, runs started."""
