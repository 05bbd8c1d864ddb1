"""The commands: flags and their checks, edits, profiles, and how a program ends."""
