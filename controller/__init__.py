"""Treats patients: plan in, beam requested, record out."""
