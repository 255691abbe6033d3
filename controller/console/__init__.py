"""Faces to people: progress, alarms."""
